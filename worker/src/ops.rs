//! Tensor operations of the models beside products: on the CPU by the worker's
//! own kernels, on other devices by candle's, with the same meaning.

use crate::config::Activation;
use crate::kernels::{pointwise, worth_sharing};
use candle_core::{CpuStorage, D, Result, Storage, Tensor};
use rayon::prelude::*;

/// Runs `f` over the contiguous f32 values of `x` and makes a tensor of
/// `shape` of what it writes.
pub(crate) fn on_cpu(
    x: &Tensor,
    shape: &[usize],
    f: impl FnOnce(&[f32], &mut [f32]),
) -> Result<Tensor> {
    let mut out = vec![0f32; shape.iter().product()];
    with_values(x, |values| f(values, &mut out))?;
    Tensor::from_vec(out, shape, x.device())
}

/// Lends the contiguous f32 values of a CPU tensor to `f`.
pub(crate) fn with_values<T>(x: &Tensor, f: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let x = x.contiguous()?;
    let (storage, layout) = x.storage_and_layout();
    match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => {
            let start = layout.start_offset();
            Ok(f(&values[start..start + x.elem_count()]))
        }
        _ => candle_core::bail!(
            "a kernel for f32 on the CPU was given {:?} on {:?}",
            x.dtype(),
            x.device()
        ),
    }
}

/// A norm by the root of the mean square: LLaMA's.
#[derive(Debug)]
pub(crate) struct RmsNorm {
    pub(crate) weight: Tensor,
    pub(crate) eps: f64,
}

impl RmsNorm {
    /// `[rows, hidden]` to `[rows, hidden]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if !x.device().is_cpu() {
            return candle_nn::ops::rms_norm(x, &self.weight, self.eps as f32);
        }
        with_values(&self.weight, |weight| {
            on_cpu(x, x.dims(), |x, out| {
                pointwise::rms_norm(x, weight, self.eps as f32, out);
            })
        })?
    }
}

/// A norm by mean and deviation: CLIP's and SigLIP's.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
    pub(crate) eps: f64,
}

impl LayerNorm {
    /// `[rows, hidden]` to `[rows, hidden]`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if !x.device().is_cpu() {
            return candle_nn::ops::layer_norm(x, &self.weight, &self.bias, self.eps as f32);
        }
        with_values(&self.weight, |weight| {
            with_values(&self.bias, |bias| {
                on_cpu(x, x.dims(), |x, out| {
                    pointwise::layer_norm(x, weight, bias, self.eps as f32, out);
                })
            })
        })??
    }
}

/// An activation, number by number.
pub(crate) fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return match activation {
            Activation::QuickGelu => x * candle_nn::ops::sigmoid(&(x * 1.702)?)?,
            Activation::Gelu => x.gelu_erf(),
            Activation::GeluTanh => x.gelu(),
        };
    }
    on_cpu(x, x.dims(), |x, out| match activation {
        Activation::QuickGelu => pointwise::quick_gelu(x, out),
        Activation::Gelu => pointwise::gelu_erf(x, out),
        Activation::GeluTanh => pointwise::gelu_tanh(x, out),
    })
}

/// `silu(gate) * up` of rows `[gate, up]`, halving the width.
pub(crate) fn silu_times(x: &Tensor) -> Result<Tensor> {
    let (rows, both) = x.dims2()?;
    let width = both / 2;
    if !x.device().is_cpu() {
        let gate = x.narrow(D::Minus1, 0, width)?.contiguous()?;
        return gate.silu()? * x.narrow(D::Minus1, width, width)?.contiguous()?;
    }
    on_cpu(x, &[rows, width], |x, out| {
        pointwise::silu_times(x, width, out);
    })
}

/// `a + b`, of the same shape.
pub(crate) fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if !a.device().is_cpu() {
        return a + b;
    }
    with_values(a, |a| {
        on_cpu(b, b.dims(), |b, out| {
            pointwise::add(a, b, out);
        })
    })?
}

/// Multiplications that take as long as copying a number.
const COPYING: usize = 4;

/// The columns of several `[rows, width]` beside each other.
pub(crate) fn beside(parts: &[Tensor]) -> Result<Tensor> {
    let Some(first) = parts.first() else {
        candle_core::bail!("nothing to put beside each other");
    };
    if !first.device().is_cpu() {
        return Tensor::cat(parts, D::Minus1);
    }
    let rows = first.dims2()?.0;
    let widths = parts
        .iter()
        .map(|part| Ok(part.dims2()?.1))
        .collect::<Result<Vec<_>>>()?;
    let width = widths.iter().sum::<usize>();
    let mut out = vec![0f32; rows * width];
    let mut start = 0;
    for (part, wide) in parts.iter().zip(widths) {
        with_values(part, |values| {
            let place = |(row, values): (&mut [f32], &[f32])| {
                row[start..start + wide].copy_from_slice(values);
            };
            if worth_sharing(values.len() * COPYING) {
                let rows = out.par_chunks_mut(width);
                rows.zip(values.par_chunks(wide)).for_each(place);
            } else {
                out.chunks_mut(width)
                    .zip(values.chunks(wide))
                    .for_each(place);
            }
        })?;
        start += wide;
    }
    Tensor::from_vec(out, (rows, width), first.device())
}

/// Adds `bias` `[width]` to every row.
pub(crate) fn add_bias(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return x.broadcast_add(bias);
    }
    with_values(bias, |bias| {
        on_cpu(x, x.dims(), |x, out| {
            for (out, x) in out.chunks_mut(bias.len()).zip(x.chunks(bias.len())) {
                out.copy_from_slice(x);
                pointwise::add_to(bias, out);
            }
        })
    })?
}
