//! A product with an optional bias, and the reading of weights for it.

use crate::matmul::{Maker, Product, Stacked};
use crate::model::LoadError;
use crate::ops::{self, LayerNorm, RmsNorm};
use crate::weights::Weights;
use candle_core::{Result, Tensor};
use std::sync::Arc;

/// Numbers that are widened together while weights are packed: 128 MiB of them.
const AT_ONCE: usize = 32 << 20;
/// Outputs of a block come in whole panels.
const BLOCK: usize = 64;

/// `x * weights + bias`.
#[derive(Debug)]
pub(crate) struct Linear {
    product: Arc<dyn Product>,
    bias: Option<Tensor>,
}

impl Linear {
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = self.product.multiply(x)?;
        match &self.bias {
            Some(bias) => ops::add_bias(&y, bias),
            None => Ok(y),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.product.bytes()
    }

    /// Multiplications for one row.
    pub(crate) fn multiplications(&self) -> usize {
        self.product.inputs() * self.product.outputs()
    }
}

/// Reads the parts of a model: the weights with their names, and the maker of
/// products.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'a> {
    pub(crate) weights: &'a Weights,
    pub(crate) maker: &'a Maker,
    /// Called with the bytes of each weight that has been read.
    pub(crate) progress: &'a dyn Fn(usize),
}

impl Reader<'_> {
    /// The tensor `name` as it is.
    pub(crate) fn tensor(
        &self,
        name: &str,
        shape: &[usize],
    ) -> std::result::Result<Tensor, LoadError> {
        let values = self.values(name, shape)?;
        Ok(self.maker.tensor(values, shape)?)
    }

    /// A product whose outputs are those of several weights, one after
    /// another: `parts` are their names and numbers of outputs.
    pub(crate) fn linear(
        &self,
        parts: &[(&str, usize)],
        inputs: usize,
        bias: bool,
    ) -> std::result::Result<Linear, LoadError> {
        let outputs = parts.iter().map(|(_, outputs)| outputs).sum();
        let mut biases = Vec::new();
        if bias {
            for (name, outputs) in parts {
                biases.extend(self.values(&format!("{name}.bias"), &[*outputs])?);
            }
        }
        let product = if outputs * inputs > AT_ONCE && self.maker.device().is_cpu() {
            self.stacked(parts, inputs)?
        } else {
            let mut weights = Vec::with_capacity(outputs * inputs);
            for (name, outputs) in parts {
                weights.extend(self.values(&format!("{name}.weight"), &[*outputs, inputs])?);
            }
            self.maker.make(weights, outputs, inputs)?
        };
        Ok(Linear {
            product,
            bias: if bias {
                Some(self.maker.tensor(biases, &[outputs])?)
            } else {
                None
            },
        })
    }

    /// The same product in blocks of outputs, so that no more than a block is in memory
    /// twice: wide, and packed.
    fn stacked(
        &self,
        parts: &[(&str, usize)],
        inputs: usize,
    ) -> std::result::Result<Arc<dyn Product>, LoadError> {
        let at_once = (AT_ONCE / inputs).max(1).next_multiple_of(BLOCK);
        let mut blocks = Vec::new();
        for (name, outputs) in parts {
            let name = format!("{name}.weight");
            for start in (0..*outputs).step_by(at_once) {
                let rows = start..(start + at_once).min(*outputs);
                let values = self
                    .weights
                    .f32_rows(&name, &[*outputs, inputs], rows.clone())?;
                (self.progress)(values.len());
                blocks.push(self.maker.make(values, rows.len(), inputs)?);
            }
        }
        Ok(Arc::new(Stacked::new(blocks)))
    }

    /// A convolution whose stride is its size, as a product over patches cut
    /// from the three colours.
    pub(crate) fn patches(
        &self,
        name: &str,
        outputs: usize,
        patch: usize,
        bias: bool,
    ) -> std::result::Result<Linear, LoadError> {
        let weights = self.values(&format!("{name}.weight"), &[outputs, 3, patch, patch])?;
        let product = self.maker.make(weights, outputs, 3 * patch * patch)?;
        let bias = if bias {
            Some(self.tensor(&format!("{name}.bias"), &[outputs])?)
        } else {
            None
        };
        Ok(Linear { product, bias })
    }

    pub(crate) fn rms_norm(
        &self,
        name: &str,
        width: usize,
        eps: f64,
    ) -> std::result::Result<RmsNorm, LoadError> {
        let weight = self.tensor(&format!("{name}.weight"), &[width])?;
        Ok(RmsNorm { weight, eps })
    }

    pub(crate) fn layer_norm(
        &self,
        name: &str,
        width: usize,
        eps: f64,
    ) -> std::result::Result<LayerNorm, LoadError> {
        Ok(LayerNorm {
            weight: self.tensor(&format!("{name}.weight"), &[width])?,
            bias: self.tensor(&format!("{name}.bias"), &[width])?,
            eps,
        })
    }

    fn values(&self, name: &str, shape: &[usize]) -> std::result::Result<Vec<f32>, LoadError> {
        let values = self.weights.f32(name, shape)?;
        (self.progress)(values.len());
        Ok(values)
    }
}
