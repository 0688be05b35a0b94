//! The summed cross-entropy of rows of logits.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, D, DType, Layout, Result, Shape, Tensor};

use super::floats::{floats, slice, tensor};
use super::simd::softmax;

/// The right entry of each row, and how much the row counts.
#[derive(Debug, Clone)]
pub struct Targets {
    /// One entry a row.
    pub entries: Arc<[u32]>,
    /// One weight a row.
    pub weights: Arc<[f32]>,
}

impl Targets {
    /// Every row counts once.
    pub fn even(entries: Vec<u32>) -> Self {
        Self {
            weights: vec![1.0; entries.len()].into(),
            entries: entries.into(),
        }
    }
}

/// `Σ weight · −log softmax(row)[entry]` over the rows of `[rows, classes]`, a scalar. A sum,
/// not a mean, so that parts of a batch add up to the whole.
///
/// # Errors
/// When the number of targets is not the number of rows.
pub fn cross_entropy(logits: &Tensor, targets: &Targets) -> Result<Tensor> {
    if super::fused(logits) {
        return logits.apply_op1(CrossEntropy(targets.clone()));
    }
    composed(logits, targets)
}

fn composed(logits: &Tensor, targets: &Targets) -> Result<Tensor> {
    let logits = logits.to_dtype(DType::F32)?;
    let rows = logits.dim(0)?;
    let (entries, device) = (targets.entries.to_vec(), logits.device());
    let max = logits.max_keepdim(D::Minus1)?.detach();
    let shifted = logits.broadcast_sub(&max)?;
    let log_sum = shifted.exp()?.sum_keepdim(D::Minus1)?.log()?;
    let entries = Tensor::from_vec(entries, (rows, 1), device)?;
    let weights = Tensor::from_vec(targets.weights.to_vec(), (rows, 1), device)?;
    ((log_sum - shifted.gather(&entries, D::Minus1)?)? * weights)?.sum_all()
}

struct CrossEntropy(Targets);

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, classes) = layout.shape().dims2()?;
        let mut row = vec![0f32; classes];
        let mut total = 0f64;
        let rows = slice(logits, layout)?.chunks_exact(classes);
        for ((logits, &entry), &weight) in rows.zip(&*self.0.entries).zip(&*self.0.weights) {
            row.copy_from_slice(logits);
            let log_sum = softmax(&mut row);
            total += f64::from(weight * (log_sum - logits[entry as usize]));
        }
        Ok((CpuStorage::F32(vec![total as f32]), ().into()))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (_, classes) = logits.dims2()?;
        let scale = dy.to_scalar::<f32>()?;
        let mut grad = floats(logits)?.to_vec();
        let rows = grad.chunks_exact_mut(classes);
        for ((row, &entry), &weight) in rows.zip(&*self.0.entries).zip(&*self.0.weights) {
            softmax(row);
            row[entry as usize] -= 1.0;
            for value in row {
                *value *= weight * scale;
            }
        }
        tensor(grad, logits).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{agree, random};
    use super::*;

    #[test]
    fn the_fused_loss_agrees_with_candle() {
        let targets = Targets {
            entries: vec![0, 3, 20].into(),
            weights: vec![1.0, 0.5, 2.0].into(),
        };
        agree(
            &[random(&[3, 21], 1)],
            |t| cross_entropy(&t[0], &targets),
            |t| composed(&t[0], &targets),
        );
    }
}
