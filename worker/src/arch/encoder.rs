//! The layers that CLIP's and SigLIP's vision models share: norm, attention
//! of every patch to every patch, norm, feed-forward (`modeling_clip.py`,
//! `CLIPEncoderLayer`).

use super::linear::{Linear, Reader};
use crate::config::{Activation, VisionConfig};
use crate::kernels::attention;
use crate::model::LoadError;
use crate::ops::{self, LayerNorm, on_cpu};
use candle_core::{D, DType, Result, Tensor};

/// One layer of a vision tower.
#[derive(Debug)]
pub(crate) struct EncoderLayer {
    norm1: LayerNorm,
    qkv: Linear,
    output: Linear,
    norm2: LayerNorm,
    up: Linear,
    down: Linear,
    activation: Activation,
    heads: usize,
}

impl EncoderLayer {
    pub(crate) fn load(
        reader: Reader<'_>,
        config: &VisionConfig,
        index: usize,
    ) -> std::result::Result<Self, LoadError> {
        let hidden = config.hidden;
        let part = |part: &str| format!("vision.encoder.layers.{index}.{part}");
        Ok(Self {
            norm1: reader.layer_norm(&part("layer_norm1"), hidden, config.norm_eps)?,
            qkv: reader.linear(
                &[
                    (&part("self_attn.q_proj"), hidden),
                    (&part("self_attn.k_proj"), hidden),
                    (&part("self_attn.v_proj"), hidden),
                ],
                hidden,
                true,
            )?,
            output: reader.linear(&[(&part("self_attn.out_proj"), hidden)], hidden, true)?,
            norm2: reader.layer_norm(&part("layer_norm2"), hidden, config.norm_eps)?,
            up: reader.linear(&[(&part("mlp.fc1"), config.intermediate)], hidden, true)?,
            down: reader.linear(&[(&part("mlp.fc2"), hidden)], config.intermediate, true)?,
            activation: config.activation,
            heads: config.heads,
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        [&self.qkv, &self.output, &self.up, &self.down]
            .iter()
            .map(|linear| linear.bytes())
            .sum()
    }

    /// `x` `[tiles * positions, hidden]` to the same.
    pub(crate) fn forward(&self, x: &Tensor, positions: usize) -> Result<Tensor> {
        let qkv = self.qkv.forward(&self.norm1.forward(x)?)?;
        let attended = attend(&qkv, positions, self.heads)?;
        let x = ops::add(x, &self.output.forward(&attended)?)?;
        let inner = ops::activate(&self.up.forward(&self.norm2.forward(&x)?)?, self.activation)?;
        ops::add(&x, &self.down.forward(&inner)?)
    }
}

fn attend(qkv: &Tensor, positions: usize, heads: usize) -> Result<Tensor> {
    let (rows, width) = qkv.dims2()?;
    let dim = width / 3 / heads;
    if qkv.device().is_cpu() {
        return on_cpu(qkv, &[rows, heads * dim], |qkv, out| {
            attention::attend_groups(qkv, positions, heads, dim, out);
        });
    }
    attend_tensors(qkv, positions, heads)
}

/// The same by candle's operations.
fn attend_tensors(qkv: &Tensor, positions: usize, heads: usize) -> Result<Tensor> {
    let (rows, width) = qkv.dims2()?;
    let (tiles, dim) = (rows / positions, width / 3 / heads);
    let qkv = qkv
        .reshape((tiles, positions, 3, heads, dim))?
        .permute((2, 0, 3, 1, 4))?;
    let part = |index: usize| qkv.get(index)?.contiguous();
    let scores = (part(0)?.matmul(&part(1)?.t()?)? * (dim as f64).powf(-0.5))?;
    let weights = candle_nn::ops::softmax(&scores.to_dtype(DType::F32)?, D::Minus1)?;
    let attended = weights.to_dtype(qkv.dtype())?.matmul(&part(2)?)?;
    attended.transpose(1, 2)?.reshape((rows, heads * dim))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn kernels_and_tensors_attend_alike() {
        let values: Vec<f32> = (0..2 * 41 * 3 * 36)
            .map(|i| (i as f32 * 0.7).sin() * 2.0)
            .collect();
        let qkv = Tensor::from_vec(values, (2 * 41, 3 * 36), &Device::Cpu).unwrap();
        let ours = attend(&qkv, 41, 2).unwrap();
        let theirs = attend_tensors(&qkv, 41, 2).unwrap();
        let worst = (ours - theirs).unwrap().abs().unwrap().max_all().unwrap();
        assert!(worst.to_scalar::<f32>().unwrap() < 1e-4);
    }
}
