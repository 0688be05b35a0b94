//! RMS norm (LLaMA) and layer norm (CLIP) over the last dimension.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, D, Layout, Result, Shape, Tensor};

use super::floats::{floats, slice, tensor};
use super::simd::{layer_rows, layer_rows_grad, rms_rows, rms_rows_grad};

/// `x / √(mean(x²) + eps) · weight` for each row of `[rows, hidden]`.
///
/// # Errors
/// When the shapes do not fit.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    if super::fused(x) {
        return x.contiguous()?.apply_op2(weight, Norm { eps });
    }
    rms_composed(x, weight, eps)
}

/// `(x − mean) / √(variance + eps) · weight + bias` for each row of `[rows, hidden]`.
///
/// # Errors
/// When the shapes do not fit.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    if super::fused(x) {
        return x.contiguous()?.apply_op3(weight, bias, Norm { eps });
    }
    layer_composed(x, weight, bias, eps)
}

fn rms_composed(x: &Tensor, weight: &Tensor, eps: f32) -> Result<Tensor> {
    let mean = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean + f64::from(eps))?.sqrt()?)?
        .broadcast_mul(weight)
}

fn layer_composed(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f32) -> Result<Tensor> {
    let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = x.sqr()?.mean_keepdim(D::Minus1)?;
    let x = x.broadcast_div(&(variance + f64::from(eps))?.sqrt()?)?;
    x.broadcast_mul(weight)?.broadcast_add(bias)
}

struct Norm {
    eps: f32,
}

impl CustomOp2 for Norm {
    fn name(&self) -> &'static str {
        "rms norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = slice(x, xl)?;
        let mut out = vec![0f32; x.len()];
        rms_rows(x, slice(w, wl)?, self.eps, &mut out);
        Ok((CpuStorage::F32(out), xl.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let (xs, ws, dys) = (floats(x)?, floats(w)?, floats(&dy)?);
        let (mut dx, mut dw) = (vec![0f32; xs.len()], vec![0f32; ws.len()]);
        rms_rows_grad(&xs, &ws, &dys, self.eps, &mut dx, &mut dw);
        let dw = w.track_op().then(|| tensor(dw, w)).transpose()?;
        Ok((Some(tensor(dx, x)?), dw))
    }
}

impl CustomOp3 for Norm {
    fn name(&self) -> &'static str {
        "layer norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x = slice(x, xl)?;
        let mut out = vec![0f32; x.len()];
        layer_rows(x, slice(w, wl)?, slice(b, bl)?, self.eps, &mut out);
        Ok((CpuStorage::F32(out), xl.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let (xs, ws, dys) = (floats(x)?, floats(w)?, floats(&dy)?);
        let (mut dw, mut db) = (vec![0f32; ws.len()], vec![0f32; ws.len()]);
        let mut dx = vec![0f32; xs.len()];
        layer_rows_grad(&xs, &ws, &dys, self.eps, &mut dx, &mut dw, &mut db);
        let dw = w.track_op().then(|| tensor(dw, w)).transpose()?;
        let db = b.track_op().then(|| tensor(db, b)).transpose()?;
        Ok((Some(tensor(dx, x)?), dw, db))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{agree, random};
    use super::*;

    #[test]
    fn the_fused_norms_agree_with_candle() {
        let inputs = [random(&[9, 37], 1), random(&[37], 2), random(&[37], 3)];
        agree(
            &inputs[..2],
            |t| rms_norm(&t[0], &t[1], 1e-5),
            |t| rms_composed(&t[0], &t[1], 1e-5),
        );
        agree(
            &inputs,
            |t| layer_norm(&t[0], &t[1], &t[2], 1e-5),
            |t| layer_composed(&t[0], &t[1], &t[2], 1e-5),
        );
    }
}
