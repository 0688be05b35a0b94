//! SigLIP's vision model up to the layer whose output LLaVA takes: patches
//! with learned positions and nothing else before the layers
//! (`modeling_siglip.py`, `SiglipVisionTransformer`). The norm and the
//! attention pooling after the layers are not used.

use super::linear::Reader;
use crate::config::VisionConfig;
use crate::model::LoadError;
use candle_core::{Result, Tensor};

/// What SigLIP does before its layers.
#[derive(Debug)]
pub(crate) struct SiglipEmbeddings {
    /// `[patches, hidden]`.
    positions: Tensor,
}

impl SiglipEmbeddings {
    pub(crate) fn load(
        reader: Reader<'_>,
        config: &VisionConfig,
    ) -> std::result::Result<Self, LoadError> {
        let shape = [config.positions(), config.hidden];
        Ok(Self {
            positions: reader.tensor("vision.embeddings.position_embedding.weight", &shape)?,
        })
    }

    /// Patches `[tiles, patches, hidden]` to `[tiles * patches, hidden]`.
    pub(crate) fn forward(&self, patches: &Tensor) -> Result<Tensor> {
        let (tiles, count, hidden) = patches.dims3()?;
        patches
            .broadcast_add(&self.positions)?
            .reshape((tiles * count, hidden))
    }
}
