//! What happens to each row or each number alone: norms, softmax, gates and
//! rotary positions. Sums run in sixteen lanes by index, so that a row's
//! result depends on that row only.

use std::ops::Range;

use super::PANEL;

const LANES: usize = 16;

/// Compiles a loop once for each set of instructions and picks one when it is
/// called; the loops are plain Rust that the compiler turns into vectors.
macro_rules! vectorised {
    ($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),*) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        pub(crate) fn $name($($arg: $type),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $type),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx2,fma")]
                fn avx512($($arg: $type),*) $(-> $ret)? { body($($arg),*) }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $type),*) $(-> $ret)? { body($($arg),*) }
                match super::Instructions::detect() {
                    // SAFETY: the processor has them.
                    super::Instructions::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    super::Instructions::Avx2 => return unsafe { avx2($($arg),*) },
                    super::Instructions::Plain => {}
                }
            }
            body($($arg),*)
        }
    };
}

/// The sum of `term` over `values`, lane by lane.
#[inline(always)]
fn lane_sum(values: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let mut chunks = values.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += term(*x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane += term(*x);
    }
    lanes.iter().sum()
}

/// The last bits of a sum with this number, 1.5 * 2^23, are the nearest whole one.
const ROUND: f32 = 12_582_912.0;

/// The whole number nearest to `x`, the even one of two; any where `x` is no number, or beyond 2^22.
#[inline(always)]
pub(super) fn nearest(x: f32) -> i32 {
    ((x + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32)
}

/// Below this power of e, an f32 holds nothing.
const SMALLEST_POWER: f32 = -87.3;

/// `e^x` for finite `x`, to about one unit in the last place, without branches.
#[inline(always)]
fn exp(x: f32) -> f32 {
    let x = x.clamp(SMALLEST_POWER, 88.7);
    let whole = x * std::f32::consts::LOG2_E + ROUND;
    let n = whole - ROUND;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_2e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    y * f32::from_bits((whole.to_bits() << 23).wrapping_add(1f32.to_bits()))
}

vectorised! {
    /// Turns one row of scores into `weight * value`, those in `seen`, and the others into 0. A weight
    /// is `e^(scale * (score * key - most))`. Gives the sum of the weights and that of the products.
    /// All rows are panels; what of them nobody has written may be no number.
    fn attention_weights(scores: &mut [f32], keys: &[f32], values: &[f32], seen: &Range<usize>, scale: f32) -> [f32; 2] {
        let (first, count) = (seen.start as u32, seen.len() as u32);
        let mut most = [f32::NEG_INFINITY; PANEL];
        for at in (0..scores.len()).step_by(PANEL) {
            let (scores, keys) = (&mut scores[at..at + PANEL], &keys[at..at + PANEL]);
            for i in 0..PANEL {
                let inside = ((at + i) as u32).wrapping_sub(first) < count;
                let x = if inside { scores[i] * keys[i] } else { f32::NEG_INFINITY };
                scores[i] = x;
                most[i] = if x > most[i] { x } else { most[i] };
            }
        }
        let most = fold(most, |a, b| if b > a { b } else { a });
        let mut sums = [[0f32; PANEL]; 2];
        for at in (0..scores.len()).step_by(PANEL) {
            let (scores, values) = (&mut scores[at..at + PANEL], &values[at..at + PANEL]);
            for i in 0..PANEL {
                let inside = ((at + i) as u32).wrapping_sub(first) < count;
                let weight = exp((scores[i] - most) * scale);
                let weighed = if inside { weight * values[i] } else { 0.0 };
                sums[0][i] += if inside { weight } else { 0.0 };
                sums[1][i] += weighed;
                scores[i] = weighed;
            }
        }
        sums.map(|sums| fold(sums, |a, b| a + b))
    }
}

/// Half with half until one is left: as many steps after one another as there are powers of two.
#[inline(always)]
fn fold<T: Copy>(mut lanes: [T; PANEL], with: impl Fn(T, T) -> T) -> T {
    let mut half = PANEL / 2;
    while half > 0 {
        for at in 0..half {
            lanes[at] = with(lanes[at], lanes[at + half]);
        }
        half /= 2;
    }
    lanes[0]
}

vectorised! {
    /// The largest of the numbers, those that are none left out; minus infinity without any.
    fn largest(values: &[f32]) -> f32 {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let mut chunks = values.chunks_exact(LANES);
        for chunk in &mut chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *lane = if *x > *lane { *x } else { *lane };
            }
        }
        let mut most = f32::NEG_INFINITY;
        for x in lanes.iter().chain(chunks.remainder()) {
            most = if *x > most { *x } else { most };
        }
        most
    }
}

vectorised! {
    /// `e^(scale * (x - most))`, where `most` is the largest; 0 for what is no number.
    fn weights(x: &[f32], most: f32, scale: f32, out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            let power = (x - most) * scale;
            let weight = exp(power);
            // False too for what is no number.
            *out = if power > SMALLEST_POWER { weight } else { 0.0 };
        }
    }
}

vectorised! {
    /// The sum of all numbers.
    fn sum(values: &[f32]) -> f32 {
        lane_sum(values, |x| x)
    }
}

vectorised! {
    /// `x / rms(x) * weight`, row by row.
    fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let width = weight.len();
        for (row, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let mean = lane_sum(row, |x| x * x) / width as f32;
            let scale = 1.0 / (mean + eps).sqrt();
            for ((out, x), weight) in out.iter_mut().zip(row).zip(weight) {
                *out = x * scale * weight;
            }
        }
    }
}

vectorised! {
    /// `(x - mean) / deviation * weight + bias`, row by row.
    fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, out: &mut [f32]) {
        let width = weight.len();
        for (row, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let mean = lane_sum(row, |x| x) / width as f32;
            let variance = lane_sum(row, |x| (x - mean) * (x - mean)) / width as f32;
            let scale = 1.0 / (variance + eps).sqrt();
            for (((out, x), weight), bias) in out.iter_mut().zip(row).zip(weight).zip(bias) {
                *out = (x - mean) * scale * weight + bias;
            }
        }
    }
}

vectorised! {
    /// `silu(gate) * up` of rows `[gate, up]`.
    fn silu_times(x: &[f32], width: usize, out: &mut [f32]) {
        for (row, out) in x.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
            let (gate, up) = row.split_at(width);
            for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                *out = gate / (1.0 + exp(-gate)) * up;
            }
        }
    }
}

vectorised! {
    /// `x * sigmoid(1.702 x)`.
    fn quick_gelu(x: &[f32], out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = x / (1.0 + exp(-1.702 * x));
        }
    }
}

vectorised! {
    /// GELU by tanh.
    fn gelu_tanh(x: &[f32], out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            let inner = 0.797_884_6 * (x + 0.044_715 * x * x * x);
            // (1 + tanh(y)) / 2 is the logistic function of 2y.
            *out = x / (1.0 + exp(-2.0 * inner));
        }
    }
}

vectorised! {
    /// GELU by the error function.
    fn gelu_erf(x: &[f32], out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out = 0.5 * x * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2));
        }
    }
}

/// The error function to about 1e-7, without branches: a rational form for
/// |x| < 4, beyond which it is 1 in f32.
#[inline(always)]
fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let s = x * x;
    let p = -2.726_142_4e-10;
    let p = p * s + 2.770_681_4e-8;
    let p = p * s - 2.101_024e-6;
    let p = p * s - 5.692_506_4e-5;
    let p = p * s - 7.349_906_3e-4;
    let p = p * s - 2.954_600_8e-3;
    let p = p * s - 1.609_603_8e-2;
    let q = -1.456_607_2e-5;
    let q = q * s - 2.133_740_6e-4;
    let q = q * s - 1.682_827e-3;
    let q = q * s - 7.373_329_3e-3;
    let q = q * s - 1.426_473_9e-2;
    x * p / q
}

vectorised! {
    /// `out = a + b`.
    fn add(a: &[f32], b: &[f32], out: &mut [f32]) {
        for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
            *out = a + b;
        }
    }
}

vectorised! {
    /// `out += x`.
    fn add_to(x: &[f32], out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(x) {
            *out += x;
        }
    }
}

vectorised! {
    /// Rotates one head by its position: channel `i` with channel
    /// `i + channels / 2`.
    fn rotate(head: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
        let half = head.len() / 2;
        let (low, high) = head.split_at(half);
        let (out_low, out_high) = out.split_at_mut(half);
        for i in 0..half {
            out_low[i] = low[i] * cos[i] - high[i] * sin[i];
            out_high[i] = high[i] * cos[i] + low[i] * sin[i];
        }
    }
}

vectorised! {
    /// Rounds numbers to `out * scale`, the largest to the largest of 16 bits; gives the scale,
    /// which is no number where one of these is none.
    fn round_to_words(x: &[f32], out: &mut [i16]) -> f32 {
        let scale = size(x) / f32::from(i16::MAX);
        let inverse = 1.0 / scale;
        for (out, x) in out.iter_mut().zip(x) {
            *out = nearest(x * inverse) as i16;
        }
        scale
    }
}

vectorised! {
    /// Takes `inverse * x` apart: `high` is the nearest whole number and `low / fine` the rest. Where
    /// there is no such number they are any.
    fn split_in_words(x: &[f32], inverse: f32, fine: f32, high: &mut [i16], low: &mut [i16]) {
        for ((x, high), low) in x.iter().zip(high).zip(low) {
            let x = x * inverse;
            let whole = x + ROUND;
            *high = whole.to_bits() as i16;
            *low = nearest((x - (whole - ROUND)) * fine) as i16;
        }
    }
}

vectorised! {
    /// The largest of the numbers without their signs; none where one of them is none.
    fn largest_size(x: &[f32]) -> f32 {
        size(x)
    }
}

#[inline(always)]
fn size(x: &[f32]) -> f32 {
    // The bits of numbers without a sign are in their order, and after them those of none.
    let mut most = [0u32; PANEL];
    for part in x.chunks(PANEL) {
        for (most, x) in most.iter_mut().zip(part) {
            *most = (*most).max(x.abs().to_bits());
        }
    }
    f32::from_bits(fold(most, u32::max))
}

vectorised! {
    /// Rounds numbers to `out * scale`; gives the scale and the sum of `out`.
    fn round_to_bytes(x: &[f32], out: &mut [i8]) -> (f32, i32) {
        let mut lanes = [0f32; LANES];
        let mut chunks = x.chunks_exact(LANES);
        for chunk in &mut chunks {
            for (lane, x) in lanes.iter_mut().zip(chunk) {
                *lane = if x.abs() > *lane { x.abs() } else { *lane };
            }
        }
        let mut most = 0f32;
        for x in lanes.iter().chain(chunks.remainder()) {
            most = if x.abs() > most { x.abs() } else { most };
        }
        let inverse = if most > 0.0 { 127.0 / most } else { 0.0 };
        let mut sum = 0;
        for (out, x) in out.iter_mut().zip(x) {
            let whole = nearest(x * inverse);
            *out = whole as i8;
            sum += whole;
        }
        (most / 127.0, sum)
    }
}
