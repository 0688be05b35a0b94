//! A product by the worker's own kernels, its weights packed for them: as they are, or
//! rounded to 8 or 4 bits when they are loaded.

use super::Product;
use crate::kernels::packed::PackedDense;
use crate::kernels::quantised::{Bits, PackedQuantised};
use crate::ops::on_cpu;
use candle_core::{Result, Tensor};

/// Weights in panels.
#[derive(Debug)]
pub struct Packed(Panels);

#[derive(Debug)]
enum Panels {
    Dense(PackedDense),
    Rounded(PackedQuantised),
}

impl Packed {
    /// Packs row-major weights `[outputs, inputs]`.
    pub fn dense(weights: &[f32], outputs: usize, inputs: usize) -> Self {
        Self(Panels::Dense(PackedDense::new(weights, outputs, inputs)))
    }

    /// Rounds row-major weights `[outputs, inputs]` to 8 bits.
    pub fn int8(weights: &[f32], outputs: usize, inputs: usize) -> Self {
        Self::rounded(weights, outputs, inputs, Bits::Eight)
    }

    /// Rounds row-major weights `[outputs, inputs]` to 4 bits.
    pub fn int4(weights: &[f32], outputs: usize, inputs: usize) -> Self {
        Self::rounded(weights, outputs, inputs, Bits::Four)
    }

    fn rounded(weights: &[f32], outputs: usize, inputs: usize, bits: Bits) -> Self {
        Self(Panels::Rounded(PackedQuantised::new(
            weights, outputs, inputs, bits,
        )))
    }
}

impl Product for Packed {
    fn multiply(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, inputs) = x.dims2()?;
        if inputs != self.inputs() {
            candle_core::bail!(
                "a product of {} inputs was given rows of {inputs}",
                self.inputs()
            );
        }
        on_cpu(x, &[rows, self.outputs()], |x, out| match &self.0 {
            Panels::Dense(panels) => panels.multiply(x, rows, out),
            Panels::Rounded(panels) => panels.multiply(x, rows, out),
        })
    }

    fn inputs(&self) -> usize {
        match &self.0 {
            Panels::Dense(panels) => panels.inputs(),
            Panels::Rounded(panels) => panels.inputs(),
        }
    }

    fn outputs(&self) -> usize {
        match &self.0 {
            Panels::Dense(panels) => panels.outputs(),
            Panels::Rounded(panels) => panels.outputs(),
        }
    }

    fn bytes(&self) -> usize {
        match &self.0 {
            Panels::Dense(panels) => panels.bytes(),
            Panels::Rounded(panels) => panels.bytes(),
        }
    }
}
