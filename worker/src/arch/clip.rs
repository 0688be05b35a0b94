//! CLIP's vision model up to the layer whose output LLaVA takes: a class token
//! before the patches, learned positions, a norm before the layers
//! (`modeling_clip.py`, `CLIPVisionTransformer`). The norm and the head after
//! the layers are not used.

use super::linear::Reader;
use crate::config::VisionConfig;
use crate::model::LoadError;
use crate::ops::LayerNorm;
use candle_core::{Result, Tensor};

/// What CLIP does before its layers.
#[derive(Debug)]
pub(crate) struct ClipEmbeddings {
    /// `[1, hidden]`, its position already added.
    class: Tensor,
    /// `[patches, hidden]`.
    positions: Tensor,
    norm: LayerNorm,
}

impl ClipEmbeddings {
    pub(crate) fn load(
        reader: Reader<'_>,
        config: &VisionConfig,
    ) -> std::result::Result<Self, LoadError> {
        let hidden = config.hidden;
        let count = config.positions();
        let class = reader.tensor("vision.embeddings.class_embedding", &[hidden])?;
        let positions = reader.tensor(
            "vision.embeddings.position_embedding.weight",
            &[count, hidden],
        )?;
        Ok(Self {
            class: class
                .reshape((1, hidden))?
                .broadcast_add(&positions.narrow(0, 0, 1)?)?,
            positions: positions.narrow(0, 1, count - 1)?.contiguous()?,
            norm: reader.layer_norm("vision.pre_layrnorm", hidden, config.norm_eps)?,
        })
    }

    /// Patches `[tiles, patches, hidden]` to `[tiles * (1 + patches), hidden]`.
    pub(crate) fn forward(&self, patches: &Tensor) -> Result<Tensor> {
        let (tiles, count, hidden) = patches.dims3()?;
        let patches = patches.broadcast_add(&self.positions)?;
        let class = self.class.expand((tiles, 1, hidden))?;
        let x = Tensor::cat(&[&class, &patches], 1)?;
        self.norm
            .forward(&x.reshape((tiles * (1 + count), hidden))?)
    }
}
