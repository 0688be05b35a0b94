//! Row kernels that the compiler vectorises: written once in plain Rust, compiled
//! for AVX-512, AVX2 and the baseline, chosen when they run.
#![allow(unsafe_code)]

/// Compiles a function for each instruction set and picks one at run time.
macro_rules! vectorised {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)*) => {$(
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn plain($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? { plain($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { plain($($arg),*) }
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    // SAFETY: the features were detected.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the features were detected.
                    return unsafe { avx2($($arg),*) };
                }
            }
            plain($($arg),*)
        }
    )*};
}

const LANES: usize = 16;

/// e^x to about one unit in the last place, without branches (Cephes' `expf`).
#[inline(always)]
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to an integer in the low bits
    let x = x.clamp(-87.0, 88.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_6e-1;
    p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    let exponent = shifted
        .to_bits()
        .wrapping_sub(ROUND.to_bits())
        .wrapping_add(127)
        << 23;
    p * f32::from_bits(exponent)
}

#[inline(always)]
fn sum_of(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let chunks = row.chunks_exact(LANES);
    let tail: f32 = chunks.remainder().iter().map(|v| f(*v)).sum();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += f(*v);
        }
    }
    lanes.iter().sum::<f32>() + tail
}

#[inline(always)]
fn dot_of(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (ca, cb) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail: f32 = ca
        .remainder()
        .iter()
        .zip(cb.remainder())
        .map(|(x, y)| x * y)
        .sum();
    for (x, y) in ca.zip(cb) {
        for i in 0..LANES {
            lanes[i] += x[i] * y[i];
        }
    }
    lanes.iter().sum::<f32>() + tail
}

#[inline(always)]
fn max_of(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = row.chunks_exact(LANES);
    let tail = chunks
        .remainder()
        .iter()
        .fold(f32::NEG_INFINITY, |m, v| m.max(*v));
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane = if *v > *lane { *v } else { *lane };
        }
    }
    lanes.iter().fold(tail, |m, v| m.max(*v))
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

vectorised! {
    /// Turns a row into its softmax and returns the logarithm of the sum of exponentials.
    pub(super) fn softmax(row: &mut [f32]) -> f32 {
        let max = max_of(row);
        for v in row.iter_mut() {
            *v = exp(*v - max);
        }
        let sum = sum_of(row, |v| v);
        let scale = 1.0 / sum;
        for v in row.iter_mut() {
            *v *= scale;
        }
        max + sum.ln()
    }

    /// `row = (row − shift) · weights`, the middle of a softmax's backward pass.
    pub(super) fn softmax_grad(row: &mut [f32], weights: &[f32], shift: f32) {
        for (v, w) in row.iter_mut().zip(weights) {
            *v = (*v - shift) * w;
        }
    }

    /// The scalar product of two rows.
    pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
        dot_of(a, b)
    }

    /// `sum += rows`, row by row of `sum`'s length.
    pub(super) fn add_rows(sum: &mut [f32], rows: &[f32]) {
        for row in rows.chunks_exact(sum.len()) {
            for (s, v) in sum.iter_mut().zip(row) {
                *s += v;
            }
        }
    }

    /// RMS norm of every row: `out = x / rms(x) · weight`.
    pub(super) fn rms_rows(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let n = weight.len();
        for (row, out) in x.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
            let scale = 1.0 / (sum_of(row, |v| v * v) / n as f32 + eps).sqrt();
            for i in 0..n {
                out[i] = row[i] * scale * weight[i];
            }
        }
    }

    /// Backward of [`rms_rows`]: writes `dx`, adds to `dw`.
    pub(super) fn rms_rows_grad(x: &[f32], weight: &[f32], dy: &[f32], eps: f32, dx: &mut [f32], dw: &mut [f32]) {
        let n = weight.len();
        let rows = x.chunks_exact(n).zip(dy.chunks_exact(n)).zip(dx.chunks_exact_mut(n));
        for ((x, dy), dx) in rows {
            let scale = 1.0 / (sum_of(x, |v| v * v) / n as f32 + eps).sqrt();
            for i in 0..n {
                dw[i] += dy[i] * x[i] * scale;
                dx[i] = dy[i] * weight[i];
            }
            let pull = dot_of(dx, x) * scale * scale * scale / n as f32;
            for i in 0..n {
                dx[i] = dx[i] * scale - x[i] * pull;
            }
        }
    }

    /// Layer norm of every row.
    pub(super) fn layer_rows(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
        let n = weight.len();
        for (row, out) in x.chunks_exact(n).zip(out.chunks_exact_mut(n)) {
            let mean = sum_of(row, |v| v) / n as f32;
            let var = sum_of(row, |v| (v - mean) * (v - mean)) / n as f32;
            let scale = 1.0 / (var + eps).sqrt();
            for i in 0..n {
                out[i] = (row[i] - mean) * scale * weight[i] + bias[i];
            }
        }
    }

    /// Backward of [`layer_rows`]: writes `dx`, adds to `dw` and `db`.
    pub(super) fn layer_rows_grad(
        x: &[f32],
        weight: &[f32],
        dy: &[f32],
        eps: f32,
        dx: &mut [f32],
        dw: &mut [f32],
        db: &mut [f32],
    ) {
        let n = weight.len();
        let rows = x.chunks_exact(n).zip(dy.chunks_exact(n)).zip(dx.chunks_exact_mut(n));
        for ((x, dy), dx) in rows {
            let mean = sum_of(x, |v| v) / n as f32;
            let var = sum_of(x, |v| (v - mean) * (v - mean)) / n as f32;
            let scale = 1.0 / (var + eps).sqrt();
            for i in 0..n {
                dw[i] += dy[i] * (x[i] - mean) * scale;
                db[i] += dy[i];
                dx[i] = dy[i] * weight[i];
            }
            let level = sum_of(dx, |v| v) / n as f32;
            let slope = (dot_of(dx, x) - mean * level * n as f32) * scale * scale / n as f32;
            for i in 0..n {
                dx[i] = (dx[i] - level - (x[i] - mean) * slope) * scale;
            }
        }
    }

    /// `out = silu(gate) · up`.
    pub(super) fn swiglu_values(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((g, u), o) in gate.iter().zip(up).zip(out) {
            *o = g * sigmoid(*g) * u;
        }
    }

    /// Backward of [`swiglu_values`].
    pub(super) fn swiglu_grads(gate: &[f32], up: &[f32], dy: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
        for i in 0..dy.len() {
            let s = sigmoid(gate[i]);
            dup[i] = dy[i] * gate[i] * s;
            dgate[i] = dy[i] * up[i] * s * (1.0 + gate[i] * (1.0 - s));
        }
    }

    /// CLIP's GELU: `x · sigmoid(1.702 x)`.
    pub(super) fn quick_gelu_values(x: &[f32], out: &mut [f32]) {
        for (x, o) in x.iter().zip(out) {
            *o = x * sigmoid(1.702 * x);
        }
    }

    /// Backward of [`quick_gelu_values`].
    pub(super) fn quick_gelu_grads(x: &[f32], dy: &[f32], dx: &mut [f32]) {
        for ((x, dy), dx) in x.iter().zip(dy).zip(dx) {
            let s = sigmoid(1.702 * x);
            *dx = dy * s * (1.0 + 1.702 * x * (1.0 - s));
        }
    }

    /// The sum of squares, for a gradient's norm.
    pub(in crate::train) fn sum_of_squares(values: &[f32]) -> f32 {
        sum_of(values, |v| v * v)
    }

    /// One AdamW update in place of `w`, `m` and `v`.
    pub(in crate::train) fn adamw_update(
        w: &mut [f32],
        m: &mut [f32],
        v: &mut [f32],
        gradient: &[f32],
        step: &AdamStep,
    ) {
        let keep = 1.0 - step.rate * step.decay;
        for i in 0..w.len() {
            let g = gradient[i] * step.scale;
            m[i] = step.beta1 * m[i] + (1.0 - step.beta1) * g;
            v[i] = step.beta2 * v[i] + (1.0 - step.beta2) * g * g;
            let root = (v[i] / step.fix2).sqrt() + step.epsilon;
            w[i] = w[i] * keep - step.rate * (m[i] / step.fix1) / root;
        }
    }
}

/// The numbers of one AdamW update.
#[derive(Debug, Clone, Copy)]
pub(in crate::train) struct AdamStep {
    /// What the gradient is multiplied by first.
    pub(in crate::train) scale: f32,
    /// Learning rate of this update.
    pub(in crate::train) rate: f32,
    /// Weight decay.
    pub(in crate::train) decay: f32,
    /// Decay of the mean.
    pub(in crate::train) beta1: f32,
    /// Decay of the square.
    pub(in crate::train) beta2: f32,
    /// Added to the root of the square.
    pub(in crate::train) epsilon: f32,
    /// Correction of the mean's start, 1 − β₁ᵗ.
    pub(in crate::train) fix1: f32,
    /// Correction of the square's start, 1 − β₂ᵗ.
    pub(in crate::train) fix2: f32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_right_to_single_precision() {
        for i in -8600..8800 {
            let x = i as f32 / 100.0;
            let (got, want) = (exp(x), f64::from(x).exp());
            assert!(
                (f64::from(got) - want).abs() <= 3e-7 * want,
                "{x}: {got} against {want}"
            );
        }
        assert_eq!(exp(-1e30), exp(-87.0));
    }

    #[test]
    fn a_softmax_sums_to_one_for_any_length() {
        for n in [1, 15, 16, 17, 170] {
            let mut row: Vec<f32> = (0..n).map(|i| (i as f32).sin() * 9.0).collect();
            softmax(&mut row);
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        }
    }
}
