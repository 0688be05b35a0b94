//! A product by candle, on any device that candle knows: the form that CUDA
//! uses, and what the other forms are measured against.

use super::Product;
use candle_core::{DType, Device, Result, Tensor};

/// Weights as a candle tensor.
#[derive(Debug)]
pub struct Dense {
    /// `[inputs, outputs]`, a transposed view.
    weights: Tensor,
}

impl Dense {
    /// Takes row-major weights `[outputs, inputs]`.
    ///
    /// # Errors
    /// The weights do not fill their shape, or the device has no room.
    pub fn new(
        weights: Vec<f32>,
        outputs: usize,
        inputs: usize,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        let weights = Tensor::from_vec(weights, (outputs, inputs), device)?.to_dtype(dtype)?;
        Ok(Self {
            weights: weights.t()?,
        })
    }
}

impl Product for Dense {
    fn multiply(&self, x: &Tensor) -> Result<Tensor> {
        x.matmul(&self.weights)
    }

    fn inputs(&self) -> usize {
        self.weights.dims()[0]
    }

    fn outputs(&self) -> usize {
        self.weights.dims()[1]
    }

    fn bytes(&self) -> usize {
        self.weights.elem_count() * self.weights.dtype().size_in_bytes()
    }
}
