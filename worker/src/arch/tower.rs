//! A vision tower: tiles of pixels to features, `[tiles * tokens, hidden]`.

use super::clip::ClipEmbeddings;
use super::encoder::EncoderLayer;
use super::linear::{Linear, Reader};
use super::siglip::SiglipEmbeddings;
use crate::config::{ModelConfig, VisionConfig, VisionKind};
use crate::model::LoadError;
use candle_core::{DType, Device, Result, Tensor};

/// A CLIP or SigLIP vision model.
#[derive(Debug)]
pub(crate) struct Tower {
    config: VisionConfig,
    patches: Linear,
    embeddings: Embeddings,
    layers: Vec<EncoderLayer>,
    keep_class: bool,
}

#[derive(Debug)]
enum Embeddings {
    Clip(ClipEmbeddings),
    Siglip(SiglipEmbeddings),
}

impl Tower {
    pub(crate) fn load(
        reader: Reader<'_>,
        config: &ModelConfig,
    ) -> std::result::Result<Self, LoadError> {
        let vision = &config.vision;
        let bias = vision.kind == VisionKind::Siglip;
        Ok(Self {
            patches: reader.patches(
                "vision.embeddings.patch_embedding",
                vision.hidden,
                vision.patch_size,
                bias,
            )?,
            embeddings: match vision.kind {
                VisionKind::Clip => Embeddings::Clip(ClipEmbeddings::load(reader, vision)?),
                VisionKind::Siglip => Embeddings::Siglip(SiglipEmbeddings::load(reader, vision)?),
            },
            layers: (0..config.tower_layers)
                .map(|index| EncoderLayer::load(reader, vision, index))
                .collect::<std::result::Result<_, _>>()?,
            keep_class: config.keep_class,
            config: vision.clone(),
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.patches.bytes() + self.layers.iter().map(EncoderLayer::bytes).sum::<usize>()
    }

    /// Floats of one tile's pixels.
    pub(crate) fn tile_len(&self) -> usize {
        3 * self.config.image_size * self.config.image_size
    }

    /// Features of one tile.
    pub(crate) fn tokens(&self) -> usize {
        self.config.side() * self.config.side() + usize::from(self.keep_class)
    }

    /// Encodes `tiles`, each `[3, side, side]`.
    pub(crate) fn forward(
        &self,
        tiles: &[&[f32]],
        device: &Device,
        dtype: DType,
    ) -> Result<Tensor> {
        let side = self.config.side();
        let count = side * side;
        let patches = self.cut(tiles);
        let width = 3 * self.config.patch_size * self.config.patch_size;
        let patches =
            Tensor::from_vec(patches, (tiles.len() * count, width), device)?.to_dtype(dtype)?;
        let patches =
            self.patches
                .forward(&patches)?
                .reshape((tiles.len(), count, self.config.hidden))?;
        let mut x = match &self.embeddings {
            Embeddings::Clip(embeddings) => embeddings.forward(&patches)?,
            Embeddings::Siglip(embeddings) => embeddings.forward(&patches)?,
        };
        let positions = self.config.positions();
        for layer in &self.layers {
            x = layer.forward(&x, positions)?;
        }
        if self.keep_class || self.config.kind == VisionKind::Siglip {
            return Ok(x);
        }
        x.reshape((tiles.len(), positions, self.config.hidden))?
            .narrow(1, 1, count)?
            .contiguous()?
            .reshape((tiles.len() * count, self.config.hidden))
    }

    /// Patches `[tiles * patches, 3 * patch * patch]` in the order of the
    /// convolution's weights: colour, row, column.
    fn cut(&self, tiles: &[&[f32]]) -> Vec<f32> {
        let (size, patch, side) = (
            self.config.image_size,
            self.config.patch_size,
            self.config.side(),
        );
        let mut out = Vec::with_capacity(tiles.len() * side * side * 3 * patch * patch);
        for tile in tiles {
            for row in 0..side {
                for column in 0..side {
                    for line in 0..3 * patch {
                        let (colour, y) = (line / patch, line % patch);
                        let at = (colour * size + row * patch + y) * size + column * patch;
                        out.extend_from_slice(&tile[at..at + patch]);
                    }
                }
            }
        }
        out
    }
}
