//! A product by the worker's own kernels, dense weights packed for them.

use super::Product;
use crate::kernels::packed::PackedDense;
use crate::ops::on_cpu;
use candle_core::{Result, Tensor};

/// Dense weights in panels.
#[derive(Debug)]
pub struct Packed(PackedDense);

impl Packed {
    /// Packs row-major weights `[outputs, inputs]`.
    pub fn new(weights: &[f32], outputs: usize, inputs: usize) -> Self {
        Self(PackedDense::new(weights, outputs, inputs))
    }
}

impl Product for Packed {
    fn multiply(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, inputs) = x.dims2()?;
        if inputs != self.0.inputs() {
            candle_core::bail!(
                "a product of {} inputs was given rows of {inputs}",
                self.0.inputs()
            );
        }
        on_cpu(x, &[rows, self.0.outputs()], |x, out| {
            self.0.multiply(x, rows, out);
        })
    }

    fn inputs(&self) -> usize {
        self.0.inputs()
    }

    fn outputs(&self) -> usize {
        self.0.outputs()
    }

    fn bytes(&self) -> usize {
        self.0.bytes()
    }
}
