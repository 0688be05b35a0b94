//! A product in blocks of outputs, for weights so large that they are packed
//! block by block.

use super::Product;
use crate::ops::beside;
use candle_core::{Result, Tensor};
use std::sync::Arc;

/// Products of the same rows, whose outputs stand beside each other.
#[derive(Debug)]
pub struct Stacked(Vec<Arc<dyn Product>>);

impl Stacked {
    /// Takes products with the same number of inputs.
    pub fn new(blocks: Vec<Arc<dyn Product>>) -> Self {
        Self(blocks)
    }
}

impl Product for Stacked {
    fn multiply(&self, x: &Tensor) -> Result<Tensor> {
        let parts = self
            .0
            .iter()
            .map(|block| block.multiply(x))
            .collect::<Result<Vec<_>>>()?;
        beside(&parts)
    }

    fn inputs(&self) -> usize {
        self.0.first().map_or(0, |block| block.inputs())
    }

    fn outputs(&self) -> usize {
        self.0.iter().map(|block| block.outputs()).sum()
    }

    fn bytes(&self) -> usize {
        self.0.iter().map(|block| block.bytes()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::{Maker, WeightFormat};
    use candle_core::{DType, Device};

    #[test]
    fn blocks_give_the_bits_of_the_whole() {
        let (inputs, outputs) = (70, 200);
        let numbers = |count: usize| -> Vec<f32> { (0..count).map(|i| (i as f32).sin()).collect() };
        let weights = numbers(inputs * outputs);
        for format in [WeightFormat::Dense, WeightFormat::Int8, WeightFormat::Int4] {
            let maker = Maker::new(Device::Cpu, DType::F32).with_format(format);
            let make =
                |weights: &[f32]| maker.make(weights.to_vec(), weights.len() / inputs, inputs);
            let whole = make(&weights).unwrap();
            let blocks = weights
                .chunks(64 * inputs)
                .map(|block| make(block).unwrap());
            let stacked = Stacked::new(blocks.collect());
            assert_eq!(
                (stacked.inputs(), stacked.outputs()),
                (whole.inputs(), whole.outputs())
            );
            for rows in [1, 33] {
                let x =
                    Tensor::from_vec(numbers(rows * inputs), (rows, inputs), &Device::Cpu).unwrap();
                let [whole, stacked] = [whole.multiply(&x), stacked.multiply(&x)]
                    .map(|y| y.unwrap().to_vec2::<f32>().unwrap());
                assert_eq!(whole, stacked, "{format} {rows}");
            }
        }
    }
}
