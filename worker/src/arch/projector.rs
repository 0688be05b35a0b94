//! From the tower's width to the language model's: products with an
//! activation between them (LLaVA's `mm_projector`, transformers'
//! `multi_modal_projector`).

use super::linear::{Linear, Reader};
use crate::config::{Activation, ModelConfig};
use crate::model::LoadError;
use crate::ops;
use candle_core::{Result, Tensor};

/// `linear`, `mlpNx_gelu` or nothing at all.
#[derive(Debug)]
pub(crate) struct Projector {
    layers: Vec<Linear>,
    activation: Activation,
}

impl Projector {
    pub(crate) fn load(
        reader: Reader<'_>,
        config: &ModelConfig,
    ) -> std::result::Result<Self, LoadError> {
        let hidden = config.text.hidden;
        let layers = (0..config.projector.depth)
            .map(|index| {
                let inputs = if index == 0 {
                    config.vision.hidden
                } else {
                    hidden
                };
                // LLaVA numbers the activations between the products too.
                let name = format!("projector.{}", 2 * index);
                reader.linear(&[(&name, hidden)], inputs, config.projector.bias)
            })
            .collect::<std::result::Result<_, _>>()?;
        Ok(Self {
            layers,
            activation: config.projector.activation,
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.layers.iter().map(Linear::bytes).sum()
    }

    /// `[rows, vision hidden]` to `[rows, text hidden]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for (index, layer) in self.layers.iter().enumerate() {
            if index > 0 {
                x = ops::activate(&x, self.activation)?;
            }
            x = layer.forward(&x)?;
        }
        Ok(x)
    }
}
