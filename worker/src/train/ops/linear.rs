//! `y = x · wᵀ + b` with a backward pass that leaves frozen weights alone.

use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};

use super::floats::{floats, slice, tensor};
use super::product::{Matrix, multiply};
use super::simd::add_rows;

/// `x` `[rows, in]` times `weight` `[out, in]` transposed, plus `bias` `[out]`: `[rows, out]`.
///
/// # Errors
/// When the shapes do not fit.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    if !super::fused(x) {
        return composed(x, weight, bias);
    }
    let x = x.contiguous()?;
    match bias {
        Some(bias) => x.apply_op3(weight, bias, Linear),
        None => x.apply_op2(weight, Linear),
    }
}

fn composed(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let y = x.matmul(&weight.t()?)?;
    bias.map_or(Ok(y.clone()), |bias| y.broadcast_add(bias))
}

struct Linear;

fn forward(
    x: &[f32],
    xl: &Layout,
    w: &[f32],
    wl: &Layout,
    bias: Option<&[f32]>,
) -> Result<(CpuStorage, Shape)> {
    let ((rows, inner), (out, _)) = (xl.shape().dims2()?, wl.shape().dims2()?);
    let mut y = match bias {
        Some(bias) => bias.repeat(rows),
        None => vec![0f32; rows * out],
    };
    let weight = Matrix::new(w, out, inner).transposed();
    multiply(
        Matrix::new(x, rows, inner),
        weight,
        &mut y,
        out,
        bias.is_some(),
    );
    Ok((CpuStorage::F32(y), (rows, out).into()))
}

type Grads = (Option<Tensor>, Option<Tensor>, Option<Tensor>);

fn backward(x: &Tensor, w: &Tensor, bias: Option<&Tensor>, dy: &Tensor) -> Result<Grads> {
    let ((rows, inner), (out, _)) = (x.dims2()?, w.dims2()?);
    let dy = dy.contiguous()?;
    let (xs, ws, dys) = (floats(x)?, floats(w)?, floats(&dy)?);
    let grad = Matrix::new(&dys, rows, out);
    let dx = x.track_op().then(|| {
        let mut dx = vec![0f32; rows * inner];
        multiply(grad, Matrix::new(&ws, out, inner), &mut dx, inner, false);
        tensor(dx, x)
    });
    let dw = w.track_op().then(|| {
        let mut dw = vec![0f32; out * inner];
        multiply(
            grad.transposed(),
            Matrix::new(&xs, rows, inner),
            &mut dw,
            inner,
            false,
        );
        tensor(dw, w)
    });
    let db = bias.filter(|b| b.track_op()).map(|b| {
        let mut db = vec![0f32; out];
        add_rows(&mut db, &dys);
        tensor(db, b)
    });
    Ok((dx.transpose()?, dw.transpose()?, db.transpose()?))
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        forward(slice(x, xl)?, xl, slice(w, wl)?, wl, None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dw, _) = backward(x, w, None, dy)?;
        Ok((dx, dw))
    }
}

impl CustomOp3 for Linear {
    fn name(&self) -> &'static str {
        "linear with bias"
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
        forward(slice(x, xl)?, xl, slice(w, wl)?, wl, Some(slice(b, bl)?))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, b: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Grads> {
        backward(x, w, Some(b), dy)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{agree, random};
    use super::*;

    #[test]
    fn the_fused_product_agrees_with_candle() {
        let inputs = [random(&[37, 24], 1), random(&[40, 24], 2), random(&[40], 3)];
        agree(
            &inputs[..2],
            |t| linear(&t[0], &t[1], None),
            |t| composed(&t[0], &t[1], None),
        );
        agree(
            &inputs,
            |t| linear(&t[0], &t[1], Some(&t[2])),
            |t| composed(&t[0], &t[1], Some(&t[2])),
        );
    }
}
