//! Reads a candle tensor as a plain slice, for the fused operations.

use std::ops::Deref;

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, bail};

/// A contiguous f32 tensor on the CPU, read in place.
pub(in crate::train) struct Floats<G> {
    guard: G,
    range: (usize, usize),
}

/// Borrows `tensor`'s values in row-major order.
///
/// # Errors
/// When the tensor is strided, not f32, or not on the CPU.
pub(in crate::train) fn floats(tensor: &Tensor) -> Result<Floats<impl Deref<Target = Storage>>> {
    let (guard, layout) = tensor.storage_and_layout();
    match (&*guard, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(_)), Some(range)) => Ok(Floats { guard, range }),
        _ => bail!("a fused operation needs contiguous f32 on the CPU, not {layout:?}"),
    }
}

impl<G: Deref<Target = Storage>> Deref for Floats<G> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.guard {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.range.0..self.range.1],
            _ => &[],
        }
    }
}

/// The same for the storages that a custom operation is handed.
pub(super) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => bail!("a fused operation needs contiguous values, not {layout:?}"),
    }
}

/// A tensor like `like` with these values.
pub(super) fn tensor(values: Vec<f32>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, like.shape(), like.device())
}
