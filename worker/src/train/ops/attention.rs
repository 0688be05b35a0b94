//! Attention over packed sequences: no padding, each sequence sees itself alone.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor};

use super::floats::{floats, slice, tensor};
use super::product::{Matrix, multiply};
use super::simd::{dot, softmax, softmax_grad};

/// Where each sequence of a packed batch starts, and the end of the last: `[0, 5, 12]`.
pub type Segments = Arc<[usize]>;

/// The angles of rotary position embeddings, one row a position (LLaMA's half-split order).
#[derive(Debug, Clone)]
pub struct Rope {
    cos: Arc<[f32]>,
    sin: Arc<[f32]>,
    half: usize,
}

/// The shape of one attention.
#[derive(Debug, Clone)]
pub struct Attention {
    /// Sequences of the batch.
    pub segments: Segments,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// A position sees no later one.
    pub causal: bool,
    /// Rotary embeddings of queries and keys.
    pub rope: Option<Rope>,
}

/// Rows of queries taken at once: small enough that scores stay in the first cache.
const BLOCK: usize = 64;

impl Rope {
    /// Angles for `positions` positions of heads `head_dim` wide; `factor` divides every position.
    pub fn new(positions: usize, head_dim: usize, theta: f64, factor: f64) -> Self {
        let half = head_dim / 2;
        let angle = |i: usize| {
            let (position, pair) = (i / half, i % half);
            position as f64 / factor * theta.powf(-2.0 * pair as f64 / head_dim as f64)
        };
        Self {
            cos: (0..positions * half)
                .map(|i| angle(i).cos() as f32)
                .collect(),
            sin: (0..positions * half)
                .map(|i| angle(i).sin() as f32)
                .collect(),
            half,
        }
    }

    /// Positions the angles were made for.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half
    }

    /// Turns a row by its position; `sign` −1 turns it back.
    fn turn(&self, row: &mut [f32], position: usize, sign: f32) {
        let at = position * self.half;
        let (a, b) = row.split_at_mut(self.half);
        for i in 0..self.half {
            let (cos, sin) = (self.cos[at + i], sign * self.sin[at + i]);
            let (x, y) = (a[i], b[i]);
            a[i] = x * cos - y * sin;
            b[i] = y * cos + x * sin;
        }
    }
}

/// Softmax attention of `q` `[tokens, heads · dim]` on `k` and `v` `[tokens, kv_heads · dim]`.
///
/// # Errors
/// When the shapes do not fit.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, shape: &Attention) -> Result<Tensor> {
    if super::fused(q) {
        return q.apply_op3(k, v, shape.clone());
    }
    composed(q, k, v, shape)
}

fn composed(q: &Tensor, k: &Tensor, v: &Tensor, shape: &Attention) -> Result<Tensor> {
    let group = shape.heads / shape.kv_heads;
    let mut outputs = Vec::with_capacity(shape.segments.len());
    for pair in shape.segments.windows(2) {
        let (start, len) = (pair[0], pair[1] - pair[0]);
        let heads = |t: &Tensor, heads: usize| {
            t.narrow(0, start, len)?
                .reshape((len, heads, shape.head_dim))?
                .transpose(0, 1)?
                .contiguous()
        };
        let rotate = |t: Tensor| -> Result<Tensor> {
            let Some(rope) = &shape.rope else {
                return Ok(t);
            };
            let angles = |table: &[f32]| {
                let rows = table[..len * rope.half].to_vec();
                let half = Tensor::from_vec(rows, (1, len, rope.half), t.device())?;
                Tensor::cat(&[&half, &half], D::Minus1)?.to_dtype(t.dtype())
            };
            let (a, b) = (
                t.narrow(2, 0, rope.half)?,
                t.narrow(2, rope.half, rope.half)?,
            );
            let swapped = Tensor::cat(&[&b.neg()?, &a], D::Minus1)?;
            t.broadcast_mul(&angles(&rope.cos)?)? + swapped.broadcast_mul(&angles(&rope.sin)?)?
        };
        let spread = |t: Tensor| -> Result<Tensor> {
            let dims = (shape.kv_heads, group, len, shape.head_dim);
            t.unsqueeze(1)?
                .broadcast_as(dims)?
                .reshape((shape.heads, len, shape.head_dim))
        };
        let q = rotate(heads(q, shape.heads)?)?;
        let k = spread(rotate(heads(k, shape.kv_heads)?)?)?;
        let v = spread(heads(v, shape.kv_heads)?)?;
        let mut scores = (q.matmul(&k.t()?)? / (shape.head_dim as f64).sqrt())?;
        if shape.causal {
            let blocked = |i: usize| if i % len > i / len { -1e9f32 } else { 0.0 };
            let mask = Tensor::from_iter((0..len * len).map(blocked), q.device())?;
            scores = scores.broadcast_add(&mask.reshape((1, len, len))?.to_dtype(q.dtype())?)?;
        }
        let max = scores.max_keepdim(D::Minus1)?.detach();
        let weights = scores.broadcast_sub(&max)?.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        let out = weights.matmul(&v)?.transpose(0, 1)?.contiguous()?;
        outputs.push(out.reshape((len, shape.heads * shape.head_dim))?);
    }
    Tensor::cat(&outputs, 0)
}

/// One head of one sequence, gathered and turned.
struct Head {
    q: Vec<f32>,
    k: Vec<f32>,
    scores: Vec<f32>,
}

impl Attention {
    fn width(&self) -> (usize, usize) {
        (self.heads * self.head_dim, self.kv_heads * self.head_dim)
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Keys that a block of queries ending at `end` may see.
    fn visible(&self, end: usize, len: usize) -> usize {
        if self.causal { end } else { len }
    }

    /// Copies one head's rows out of a packed tensor, turned by position and scaled.
    fn gather(
        &self,
        from: &[f32],
        width: usize,
        head: usize,
        at: (usize, usize),
        scale: f32,
    ) -> Vec<f32> {
        let d = self.head_dim;
        let mut rows = Vec::with_capacity(at.1 * d);
        for t in 0..at.1 {
            let start = (at.0 + t) * width + head * d;
            rows.extend_from_slice(&from[start..start + d]);
            let row = &mut rows[t * d..];
            if let Some(rope) = &self.rope {
                rope.turn(row, t, 1.0);
            }
            for v in row {
                *v *= scale;
            }
        }
        rows
    }

    /// Adds a head's gradient back to its packed place, turned back and scaled.
    fn scatter(
        &self,
        mut rows: Vec<f32>,
        to: &mut [f32],
        width: usize,
        head: usize,
        at: (usize, usize),
        scale: f32,
    ) {
        let d = self.head_dim;
        for (t, row) in rows.chunks_exact_mut(d).enumerate() {
            if let Some(rope) = &self.rope {
                rope.turn(row, t, -1.0);
            }
            let start = (at.0 + t) * width + head * d;
            for (to, v) in to[start..start + d].iter_mut().zip(row) {
                *to += *v * scale;
            }
        }
    }

    /// Attention weights of queries `[from, to)` on the keys they may see, row by row of `keys`.
    fn weights(&self, head: &mut Head, from: usize, to: usize, keys: usize) {
        let (d, rows) = (self.head_dim, to - from);
        let queries = Matrix::new(&head.q[from * d..to * d], rows, d);
        let all = Matrix::new(&head.k[..keys * d], keys, d).transposed();
        multiply(queries, all, &mut head.scores, keys, false);
        for (i, row) in head.scores[..rows * keys]
            .chunks_exact_mut(keys)
            .enumerate()
        {
            let seen = if self.causal { from + i + 1 } else { keys };
            softmax(&mut row[..seen]);
            row[seen..].fill(0.0);
        }
    }

    fn forward(&self, q: &[f32], k: &[f32], v: &[f32]) -> Vec<f32> {
        let ((wide, narrow), d) = (self.width(), self.head_dim);
        let mut out = vec![0f32; q.len()];
        self.each_head(|at, h, kv| {
            let mut head = self.head(q, k, at, h, kv);
            for from in (0..at.1).step_by(BLOCK) {
                let to = (from + BLOCK).min(at.1);
                let keys = self.visible(to, at.1);
                self.weights(&mut head, from, to, keys);
                let weights = Matrix::new(&head.scores[..(to - from) * keys], to - from, keys);
                let values = Matrix::strided(&v[at.0 * narrow + kv * d..], keys, d, narrow);
                multiply(
                    weights,
                    values,
                    &mut out[(at.0 + from) * wide + h * d..],
                    wide,
                    false,
                );
            }
        });
        out
    }

    fn backward(&self, q: &[f32], k: &[f32], v: &[f32], out: &[f32], dy: &[f32]) -> [Vec<f32>; 3] {
        let ((wide, narrow), d) = (self.width(), self.head_dim);
        let [mut dq, mut dk, mut dv] = [q, k, v].map(|t| vec![0f32; t.len()]);
        let mut dscores = Vec::new();
        self.each_head(|at, h, kv| {
            let (start, len) = at;
            let mut head = self.head(q, k, at, h, kv);
            let (mut dqh, mut dkh) = (vec![0f32; len * d], vec![0f32; len * d]);
            dscores.resize(BLOCK.min(len) * len, 0f32);
            for from in (0..len).step_by(BLOCK) {
                let to = (from + BLOCK).min(len);
                let (rows, keys) = (to - from, self.visible(to, len));
                self.weights(&mut head, from, to, keys);
                let place = (start + from) * wide + h * d;
                let dout = Matrix::strided(&dy[place..], rows, d, wide);
                let weights = Matrix::new(&head.scores[..rows * keys], rows, keys);
                let values = Matrix::strided(&v[start * narrow + kv * d..], keys, d, narrow);
                multiply(
                    weights.transposed(),
                    dout,
                    &mut dv[start * narrow + kv * d..],
                    narrow,
                    true,
                );
                multiply(dout, values.transposed(), &mut dscores, keys, false);
                for i in 0..rows {
                    let place = place + i * wide;
                    let shift = dot(&out[place..place + d], &dy[place..place + d]);
                    let row = i * keys..(i + 1) * keys;
                    softmax_grad(&mut dscores[row.clone()], &head.scores[row], shift);
                }
                let ds = Matrix::new(&dscores[..rows * keys], rows, keys);
                multiply(
                    ds,
                    Matrix::new(&head.k, keys, d),
                    &mut dqh[from * d..],
                    d,
                    false,
                );
                let queries = Matrix::new(&head.q[from * d..to * d], rows, d);
                multiply(ds.transposed(), queries, &mut dkh, d, true);
            }
            self.scatter(dqh, &mut dq, wide, h, at, self.scale());
            // The queries were scaled when they were gathered: the keys' gradient is whole.
            self.scatter(dkh, &mut dk, narrow, kv, at, 1.0);
        });
        [dq, dk, dv]
    }

    fn head(&self, q: &[f32], k: &[f32], at: (usize, usize), h: usize, kv: usize) -> Head {
        let (wide, narrow) = self.width();
        Head {
            q: self.gather(q, wide, h, at, self.scale()),
            k: self.gather(k, narrow, kv, at, 1.0),
            scores: vec![0f32; BLOCK.min(at.1) * at.1],
        }
    }

    /// Calls `f((start, length), head, key head)` for each head of each sequence.
    fn each_head(&self, mut f: impl FnMut((usize, usize), usize, usize)) {
        let group = self.heads / self.kv_heads;
        for pair in self.segments.windows(2) {
            for h in 0..self.heads {
                f((pair[0], pair[1] - pair[0]), h, h / group);
            }
        }
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        ql: &Layout,
        k: &CpuStorage,
        kl: &Layout,
        v: &CpuStorage,
        vl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let out = self.forward(slice(q, ql)?, slice(k, kl)?, slice(v, vl)?);
        Ok((CpuStorage::F32(out), ql.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let [dq, dk, dv] = self.backward(
            &floats(q)?,
            &floats(k)?,
            &floats(v)?,
            &floats(out)?,
            &floats(&dy)?,
        );
        Ok((
            Some(tensor(dq, q)?),
            Some(tensor(dk, k)?),
            Some(tensor(dv, v)?),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{agree, random};
    use super::*;

    #[test]
    fn the_fused_attention_agrees_with_candle() {
        for (heads, kv_heads, causal, rope) in
            [(4, 4, true, true), (4, 2, true, true), (2, 2, false, false)]
        {
            let shape = Attention {
                segments: vec![0, 5, 6, 140].into(),
                heads,
                kv_heads,
                head_dim: 8,
                causal,
                rope: rope.then(|| Rope::new(140, 8, 10_000.0, 1.0)),
            };
            let inputs = [
                random(&[140, heads * 8], 1),
                random(&[140, kv_heads * 8], 2),
                random(&[140, kv_heads * 8], 3),
            ];
            agree(
                &inputs,
                |t| attention(&t[0], &t[1], &t[2], &shape),
                |t| composed(&t[0], &t[1], &t[2], &shape),
            );
        }
    }
}
