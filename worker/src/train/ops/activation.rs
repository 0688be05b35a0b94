//! The gates of LLaMA's and CLIP's MLPs.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

use super::floats::{floats, slice, tensor};
use super::simd::{quick_gelu_grads, quick_gelu_values, swiglu_grads, swiglu_values};

/// `silu(gate) · up`, element by element.
///
/// # Errors
/// When the shapes differ.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if super::fused(gate) {
        return gate.apply_op2(up, SwiGlu);
    }
    swiglu_composed(gate, up)
}

/// CLIP's GELU: `x · sigmoid(1.702 x)`.
///
/// # Errors
/// When the device fails.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    if super::fused(x) {
        return x.apply_op1(QuickGelu);
    }
    quick_gelu_composed(x)
}

fn swiglu_composed(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()? * up
}

fn quick_gelu_composed(x: &Tensor) -> Result<Tensor> {
    let gate = ((x * -1.702)?.exp()? + 1.0)?.recip()?;
    x * gate
}

struct SwiGlu;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        g: &CpuStorage,
        gl: &Layout,
        u: &CpuStorage,
        ul: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (g, u) = (slice(g, gl)?, slice(u, ul)?);
        let mut out = vec![0f32; g.len()];
        swiglu_values(g, u, &mut out);
        Ok((CpuStorage::F32(out), gl.shape().clone()))
    }

    fn bwd(
        &self,
        g: &Tensor,
        u: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let (gs, us, dys) = (floats(g)?, floats(u)?, floats(&dy)?);
        let (mut dg, mut du) = (vec![0f32; gs.len()], vec![0f32; gs.len()]);
        swiglu_grads(&gs, &us, &dys, &mut dg, &mut du);
        Ok((Some(tensor(dg, g)?), Some(tensor(du, u)?)))
    }
}

struct QuickGelu;

impl CustomOp1 for QuickGelu {
    fn name(&self) -> &'static str {
        "quick gelu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(x, xl)?;
        let mut out = vec![0f32; x.len()];
        quick_gelu_values(x, &mut out);
        Ok((CpuStorage::F32(out), xl.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dy = dy.contiguous()?;
        let (xs, dys) = (floats(x)?, floats(&dy)?);
        let mut dx = vec![0f32; xs.len()];
        quick_gelu_grads(&xs, &dys, &mut dx);
        tensor(dx, x).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{agree, random};
    use super::*;

    #[test]
    fn the_fused_gates_agree_with_candle() {
        let inputs = [random(&[5, 19], 1), random(&[5, 19], 2)];
        agree(
            &inputs,
            |t| swiglu(&t[0], &t[1]),
            |t| swiglu_composed(&t[0], &t[1]),
        );
        agree(
            &inputs[..1],
            |t| quick_gelu(&t[0]),
            |t| quick_gelu_composed(&t[0]),
        );
    }
}
