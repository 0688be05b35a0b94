//! A product with weights rounded to 8 or 4 bits when they are loaded.

use super::Product;
use crate::kernels::quantised::{Bits, PackedQuantised};
use crate::ops::on_cpu;
use candle_core::{Result, Tensor};

/// Rounded weights in panels.
#[derive(Debug)]
pub struct Quantised(PackedQuantised);

impl Quantised {
    /// Rounds row-major weights `[outputs, inputs]` to 8 bits.
    pub fn int8(weights: &[f32], outputs: usize, inputs: usize) -> Self {
        Self(PackedQuantised::new(weights, outputs, inputs, Bits::Eight))
    }

    /// Rounds row-major weights `[outputs, inputs]` to 4 bits.
    pub fn int4(weights: &[f32], outputs: usize, inputs: usize) -> Self {
        Self(PackedQuantised::new(weights, outputs, inputs, Bits::Four))
    }
}

impl Product for Quantised {
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
