//! A product with an optional bias, and the reading of weights for it.

use crate::matmul::{Maker, Product};
use crate::model::LoadError;
use crate::ops::{self, LayerNorm, RmsNorm};
use crate::weights::Weights;
use candle_core::{Result, Tensor};
use std::sync::Arc;

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
        let mut weights = Vec::new();
        let mut biases = Vec::new();
        for (name, outputs) in parts {
            let part = self.values(&format!("{name}.weight"), &[*outputs, inputs])?;
            if weights.is_empty() {
                weights = part;
            } else {
                weights.extend(part);
            }
            if bias {
                biases.extend(self.values(&format!("{name}.bias"), &[*outputs])?);
            }
        }
        Ok(Linear {
            product: self.maker.make(weights, outputs, inputs)?,
            bias: if bias {
                Some(self.maker.tensor(biases, &[outputs])?)
            } else {
                None
            },
        })
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
