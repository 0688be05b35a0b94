//! Products with weights of 8 or 4 bits. Weights are rounded in groups along
//! the inner dimension when they are loaded, each row of activations to 8 bits
//! when it is multiplied; sums within a group are whole numbers and therefore
//! exact, and groups are added one after another.

use super::packed::WORTH_SHARING;
use super::{Instructions, PANEL, Shared};
use half::f16;
use rayon::prelude::*;

/// Rows of one call of a kernel.
const ROWS: usize = 6;

/// Inner positions that one instruction multiplies and adds.
const QUAD: usize = 4;

/// Bits of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bits {
    /// 8, in groups of 64.
    Eight,
    /// 4, in groups of 32.
    Four,
}

impl Bits {
    /// Weights that share a scale.
    const fn group(self) -> usize {
        match self {
            Self::Eight => 64,
            Self::Four => 32,
        }
    }

    /// Stored number of the weight 0.
    const fn zero(self) -> i32 {
        match self {
            Self::Eight => 128,
            Self::Four => 8,
        }
    }

    /// Bytes of one group of 32 columns.
    const fn group_bytes(self) -> usize {
        match self {
            Self::Eight => self.group() * PANEL,
            Self::Four => self.group() * PANEL / 2,
        }
    }
}

/// `[outputs, inputs]` weights as panels of 32 columns. A panel is a row of
/// groups; a group holds quads of inner positions, 32 columns each. Four-bit
/// weights have two quads in the low and the high halves of the same bytes.
#[derive(Debug, Clone)]
pub(crate) struct PackedQuantised {
    bits: Bits,
    weights: Vec<u8>,
    /// `[panels][groups][32]`.
    scales: Vec<f16>,
    inputs: usize,
    outputs: usize,
}

/// Activations of some rows, rounded to 8 bits.
struct Rounded {
    /// `[rows][groups * group]`.
    values: Vec<i8>,
    /// `[rows][groups]`.
    scales: Vec<f32>,
    /// `[rows][groups]`: what the zero of the weights adds to each sum.
    excess: Vec<i32>,
}

impl PackedQuantised {
    /// Rounds and packs row-major `[outputs, inputs]`.
    pub(crate) fn new(weights: &[f32], outputs: usize, inputs: usize, bits: Bits) -> Self {
        assert_eq!(weights.len(), outputs * inputs, "weights fill their shape");
        let groups = inputs.div_ceil(bits.group());
        let panels = outputs.div_ceil(PANEL);
        let mut packed = vec![0u8; panels * groups * bits.group_bytes()];
        let mut scales = vec![f16::ZERO; panels * groups * PANEL];
        packed
            .par_chunks_mut(groups * bits.group_bytes())
            .zip(scales.par_chunks_mut(groups * PANEL))
            .zip(weights.par_chunks(PANEL * inputs))
            .for_each(|((packed, scales), rows)| {
                // What is not written below stays the weight 0.
                packed.fill(match bits {
                    Bits::Eight => 128,
                    Bits::Four => 0x88,
                });
                for (column, row) in rows.chunks(inputs).enumerate() {
                    for (group, part) in row.chunks(bits.group()).enumerate() {
                        let bytes = &mut packed[group * bits.group_bytes()..][..bits.group_bytes()];
                        scales[group * PANEL + column] = round_group(part, bits, column, bytes);
                    }
                }
            });
        Self {
            bits,
            weights: packed,
            scales,
            inputs,
            outputs,
        }
    }

    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    pub(crate) fn bytes(&self) -> usize {
        self.weights.len() + 2 * self.scales.len()
    }

    /// `x` `[rows, inputs]` times the weights: `[rows, outputs]`.
    pub(crate) fn multiply(&self, x: &[f32], rows: usize, out: &mut [f32]) {
        assert_eq!(
            x.len(),
            rows * self.inputs,
            "the left factor fills its shape"
        );
        assert_eq!(out.len(), rows * self.outputs, "the result fills its shape");
        let instructions = Instructions::detect();
        let rounded = Rounded::new(x, self.inputs, self.bits);
        let groups = self.inputs.div_ceil(self.bits.group());
        let out = Shared(out.as_mut_ptr());
        let one = |panel: usize| {
            for row in (0..rows).step_by(ROWS) {
                let block = QuantisedBlock {
                    weights: &self.weights[panel * groups * self.bits.group_bytes()..]
                        [..groups * self.bits.group_bytes()],
                    scales: &self.scales[panel * groups * PANEL..][..groups * PANEL],
                    values: &rounded.values[row * groups * self.bits.group()..],
                    row_scales: &rounded.scales[row * groups..],
                    excess: &rounded.excess[row * groups..],
                    groups,
                };
                let count = (rows - row).min(ROWS);
                let sums = block.run(self.bits, instructions, count);
                let first = panel * PANEL;
                let columns = PANEL.min(self.outputs - first);
                for (r, sums) in sums.iter().enumerate().take(count) {
                    // SAFETY: the columns are inside the result, and each panel writes its own.
                    unsafe {
                        let to = out.at((row + r) * self.outputs + first);
                        std::ptr::copy_nonoverlapping(sums.as_ptr(), to, columns);
                    }
                }
            }
        };
        let panels = self.outputs.div_ceil(PANEL);
        if rows * self.inputs * self.outputs < WORTH_SHARING {
            (0..panels).for_each(one);
        } else {
            (0..panels).into_par_iter().for_each(one);
        }
    }
}

/// Rounds the weights of one column in one group to where they belong in the
/// group's `bytes`; gives their scale.
fn round_group(weights: &[f32], bits: Bits, column: usize, bytes: &mut [u8]) -> f16 {
    let most = weights
        .iter()
        .copied()
        .fold(0f32, |a, b| if b.abs() > a.abs() { b } else { a });
    let scale = f16::from_f32(match bits {
        Bits::Eight => most.abs() / 127.0,
        // The largest weight becomes -8, the one end of the range that has no twin.
        Bits::Four => most / -8.0,
    });
    // A scale beyond half precision's range is no weight of any model; zero is.
    let inverse = if scale == f16::ZERO {
        0.0
    } else {
        1.0 / scale.to_f32()
    };
    for (p, weight) in weights.iter().enumerate() {
        let (quad, place) = (p / QUAD, p % QUAD);
        let whole = (weight * inverse).round_ties_even() as i32;
        match bits {
            Bits::Eight => {
                let stored = whole.clamp(-127, 127) + bits.zero();
                bytes[quad * PANEL * QUAD + column * QUAD + place] = stored as u8;
            }
            Bits::Four => {
                let stored = (whole + bits.zero()).clamp(0, 15) as u8;
                let byte = &mut bytes[quad / 2 * PANEL * QUAD + column * QUAD + place];
                *byte = if quad % 2 == 0 {
                    (*byte & 0xf0) | stored
                } else {
                    (*byte & 0x0f) | (stored << 4)
                };
            }
        }
    }
    scale
}

impl Rounded {
    fn new(x: &[f32], inputs: usize, bits: Bits) -> Self {
        let group = bits.group();
        let groups = inputs.div_ceil(group);
        let rows = x.len() / inputs;
        let mut rounded = Self {
            values: vec![0; rows * groups * group],
            scales: vec![0.0; rows * groups],
            excess: vec![0; rows * groups],
        };
        rounded
            .values
            .par_chunks_mut(groups * group)
            .zip(rounded.scales.par_chunks_mut(groups))
            .zip(rounded.excess.par_chunks_mut(groups))
            .zip(x.par_chunks(inputs))
            .with_min_len(8)
            .for_each(|(((values, scales), excess), row)| {
                for (index, part) in row.chunks(group).enumerate() {
                    let (scale, sum) = super::pointwise::round_to_bytes(
                        part,
                        &mut values[index * group..][..part.len()],
                    );
                    scales[index] = scale;
                    excess[index] = sum * bits.zero();
                }
            });
        rounded
    }
}

/// Up to [`ROWS`] rows times one panel.
#[derive(Clone, Copy)]
struct QuantisedBlock<'a> {
    weights: &'a [u8],
    scales: &'a [f16],
    values: &'a [i8],
    row_scales: &'a [f32],
    excess: &'a [i32],
    groups: usize,
}

impl QuantisedBlock<'_> {
    fn run(self, bits: Bits, instructions: Instructions, rows: usize) -> [[f32; PANEL]; ROWS] {
        let stride = self.groups * bits.group();
        assert!((1..=ROWS).contains(&rows), "a block has 1 to {ROWS} rows");
        assert!(self.values.len() >= rows * stride, "values fill their rows");
        assert!(
            self.row_scales.len() >= rows * self.groups,
            "scales fill their rows"
        );
        assert!(
            self.excess.len() >= rows * self.groups,
            "sums fill their rows"
        );
        assert_eq!(
            self.weights.len(),
            self.groups * bits.group_bytes(),
            "weights fill their panel"
        );
        assert_eq!(
            self.scales.len(),
            self.groups * PANEL,
            "scales fill their panel"
        );
        let mut out = [[0f32; PANEL]; ROWS];
        macro_rules! dispatch {
            ($kernel:ident, $($n:literal)*) => {
                match (bits, rows) {
                    $(
                        (Bits::Eight, $n) => self.$kernel::<$n, false>(&mut out),
                        (Bits::Four, $n) => self.$kernel::<$n, true>(&mut out),
                    )*
                    _ => unreachable!("asserted above"),
                }
            };
        }
        match instructions {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the processor has them, and the lengths are asserted above.
            Instructions::Avx512 => unsafe { dispatch!(avx512, 1 2 3 4 5 6) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Instructions::Avx2 => unsafe { dispatch!(avx2, 1 2 3 4 5 6) },
            _ => self.plain(bits, rows, &mut out),
        }
        out
    }

    fn plain(self, bits: Bits, rows: usize, out: &mut [[f32; PANEL]; ROWS]) {
        let group = bits.group();
        for (r, out) in out.iter_mut().enumerate().take(rows) {
            for g in 0..self.groups {
                let at = r * self.groups + g;
                let values = &self.values[at * group..][..group];
                let bytes = &self.weights[g * bits.group_bytes()..][..bits.group_bytes()];
                for (column, out) in out.iter_mut().enumerate() {
                    let mut sum = -self.excess[at];
                    for (p, value) in values.iter().enumerate() {
                        let (quad, place) = (p / QUAD, p % QUAD);
                        let weight = match bits {
                            Bits::Eight => bytes[quad * PANEL * QUAD + column * QUAD + place],
                            Bits::Four => {
                                let byte = bytes[quad / 2 * PANEL * QUAD + column * QUAD + place];
                                if quad % 2 == 0 { byte & 15 } else { byte >> 4 }
                            }
                        };
                        sum += i32::from(weight) * i32::from(*value);
                    }
                    *out += sum as f32
                        * (self.scales[g * PANEL + column].to_f32() * self.row_scales[at]);
                }
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn avx512<const R: usize, const FOUR: bool>(self, out: &mut [[f32; PANEL]; ROWS]) {
        use std::arch::x86_64::*;
        let bits = if FOUR { Bits::Four } else { Bits::Eight };
        let group = bits.group();
        let stride = self.groups * group;
        let low_half = _mm512_set1_epi8(15);
        let mut totals = [[_mm512_setzero_ps(); 2]; R];
        let mut weights = self.weights.as_ptr();
        // SAFETY: `run` asserts that every slice holds all rows and groups.
        unsafe {
            for g in 0..self.groups {
                let mut sums = [[_mm512_setzero_si512(); 2]; R];
                for (r, sum) in sums.iter_mut().enumerate() {
                    *sum = [_mm512_set1_epi32(-*self.excess.get_unchecked(r * self.groups + g)); 2];
                }
                let values = self.values.as_ptr().add(g * group);
                let quad_of = |r: usize, quad: usize| {
                    _mm512_set1_epi32(
                        values
                            .add(r * stride + quad * QUAD)
                            .cast::<i32>()
                            .read_unaligned(),
                    )
                };
                if FOUR {
                    for pair in 0..group / QUAD / 2 {
                        let left = _mm512_loadu_si512(weights.cast());
                        let right = _mm512_loadu_si512(weights.add(64).cast());
                        weights = weights.add(128);
                        let even = [
                            _mm512_and_si512(left, low_half),
                            _mm512_and_si512(right, low_half),
                        ];
                        let odd = [
                            _mm512_and_si512(_mm512_srli_epi16(left, 4), low_half),
                            _mm512_and_si512(_mm512_srli_epi16(right, 4), low_half),
                        ];
                        for (r, sum) in sums.iter_mut().enumerate() {
                            let x = quad_of(r, 2 * pair);
                            sum[0] = _mm512_dpbusd_epi32(sum[0], even[0], x);
                            sum[1] = _mm512_dpbusd_epi32(sum[1], even[1], x);
                            let x = quad_of(r, 2 * pair + 1);
                            sum[0] = _mm512_dpbusd_epi32(sum[0], odd[0], x);
                            sum[1] = _mm512_dpbusd_epi32(sum[1], odd[1], x);
                        }
                    }
                } else {
                    for quad in 0..group / QUAD {
                        let left = _mm512_loadu_si512(weights.cast());
                        let right = _mm512_loadu_si512(weights.add(64).cast());
                        weights = weights.add(128);
                        for (r, sum) in sums.iter_mut().enumerate() {
                            let x = quad_of(r, quad);
                            sum[0] = _mm512_dpbusd_epi32(sum[0], left, x);
                            sum[1] = _mm512_dpbusd_epi32(sum[1], right, x);
                        }
                    }
                }
                let scales = self.scales.as_ptr().add(g * PANEL).cast::<__m256i>();
                let left = _mm512_cvtph_ps(scales.read_unaligned());
                let right = _mm512_cvtph_ps(scales.add(1).read_unaligned());
                for (r, (total, sum)) in totals.iter_mut().zip(&sums).enumerate() {
                    let scale = _mm512_set1_ps(*self.row_scales.get_unchecked(r * self.groups + g));
                    total[0] = _mm512_fmadd_ps(
                        _mm512_cvtepi32_ps(sum[0]),
                        _mm512_mul_ps(left, scale),
                        total[0],
                    );
                    total[1] = _mm512_fmadd_ps(
                        _mm512_cvtepi32_ps(sum[1]),
                        _mm512_mul_ps(right, scale),
                        total[1],
                    );
                }
            }
            for (out, total) in out.iter_mut().zip(&totals) {
                _mm512_storeu_ps(out.as_mut_ptr(), total[0]);
                _mm512_storeu_ps(out.as_mut_ptr().add(16), total[1]);
            }
        }
    }

    /// Eight columns at a time. The byte product of AVX2 saturates at 16 bits,
    /// so 8-bit weights give their sign to the activations first.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn avx2<const R: usize, const FOUR: bool>(self, out: &mut [[f32; PANEL]; ROWS]) {
        use std::arch::x86_64::*;
        let bits = if FOUR { Bits::Four } else { Bits::Eight };
        let group = bits.group();
        let stride = self.groups * group;
        let low_half = _mm256_set1_epi8(15);
        let offset = _mm256_set1_epi8(-128);
        let ones = _mm256_set1_epi16(1);
        for eighth in 0..PANEL / 8 {
            let mut totals = [_mm256_setzero_ps(); R];
            // SAFETY: `run` asserts that every slice holds all rows and groups.
            unsafe {
                for g in 0..self.groups {
                    let mut sums = [_mm256_setzero_si256(); R];
                    let values = self.values.as_ptr().add(g * group);
                    let weights = self
                        .weights
                        .as_ptr()
                        .add(g * bits.group_bytes() + eighth * 32);
                    for quad in 0..group / QUAD {
                        let weight = if FOUR {
                            let both =
                                _mm256_loadu_si256(weights.add(quad / 2 * PANEL * QUAD).cast());
                            let half = if quad % 2 == 0 {
                                both
                            } else {
                                _mm256_srli_epi16(both, 4)
                            };
                            _mm256_and_si256(half, low_half)
                        } else {
                            _mm256_xor_si256(
                                _mm256_loadu_si256(weights.add(quad * PANEL * QUAD).cast()),
                                offset,
                            )
                        };
                        for (r, sum) in sums.iter_mut().enumerate() {
                            let x = values
                                .add(r * stride + quad * QUAD)
                                .cast::<i32>()
                                .read_unaligned();
                            let x = _mm256_set1_epi32(x);
                            let pairs = if FOUR {
                                _mm256_maddubs_epi16(weight, x)
                            } else {
                                _mm256_maddubs_epi16(
                                    _mm256_abs_epi8(weight),
                                    _mm256_sign_epi8(x, weight),
                                )
                            };
                            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
                        }
                    }
                    let scales = self
                        .scales
                        .as_ptr()
                        .add(g * PANEL + eighth * 8)
                        .cast::<__m128i>();
                    let scales = _mm256_cvtph_ps(scales.read_unaligned());
                    for (r, (total, sum)) in totals.iter_mut().zip(&sums).enumerate() {
                        let at = r * self.groups + g;
                        let excess = if FOUR {
                            *self.excess.get_unchecked(at)
                        } else {
                            0
                        };
                        let sum = _mm256_sub_epi32(*sum, _mm256_set1_epi32(excess));
                        let scale = _mm256_mul_ps(
                            scales,
                            _mm256_set1_ps(*self.row_scales.get_unchecked(at)),
                        );
                        *total = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), scale, *total);
                    }
                }
                for (out, total) in out.iter_mut().zip(&totals) {
                    _mm256_storeu_ps(out.as_mut_ptr().add(eighth * 8), *total);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count)
            .map(|i| ((i * 7 + seed) as f32 * 0.713).sin())
            .collect()
    }

    #[test]
    fn products_are_within_the_rounding_of_their_bits() {
        for (bits, allowed) in [(Bits::Eight, 0.01), (Bits::Four, 0.15)] {
            for (rows, inputs, outputs) in [(1, 5, 3), (7, 100, 33), (13, 257, 64)] {
                let weights = numbers(outputs * inputs, 3);
                let x = numbers(rows * inputs, 11);
                let mut out = vec![f32::NAN; rows * outputs];
                PackedQuantised::new(&weights, outputs, inputs, bits).multiply(&x, rows, &mut out);
                let (mut error, mut size) = (0.0, 0.0);
                for (index, found) in out.iter().enumerate() {
                    let (row, column) = (index / outputs, index % outputs);
                    let wanted: f32 = (0..inputs)
                        .map(|p| x[row * inputs + p] * weights[column * inputs + p])
                        .sum();
                    error += (found - wanted).powi(2);
                    size += wanted.powi(2);
                }
                let share = (error / size).sqrt();
                assert!(
                    share < allowed,
                    "{bits:?} {rows}x{inputs}x{outputs}: {share}"
                );
            }
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_whole_sums() {
        let (rows, inputs, outputs) = (5, 200, 40);
        let x = numbers(rows * inputs, 5);
        for bits in [Bits::Eight, Bits::Four] {
            let packed = PackedQuantised::new(&numbers(outputs * inputs, 9), outputs, inputs, bits);
            let rounded = Rounded::new(&x, inputs, bits);
            let groups = inputs.div_ceil(bits.group());
            let block = QuantisedBlock {
                weights: &packed.weights[..groups * bits.group_bytes()],
                scales: &packed.scales[..groups * PANEL],
                values: &rounded.values,
                row_scales: &rounded.scales,
                excess: &rounded.excess,
                groups,
            };
            let plain = block.run(bits, Instructions::Plain, rows);
            for instructions in [Instructions::Avx2, Instructions::Avx512] {
                if instructions <= Instructions::detect() {
                    let found = block.run(bits, instructions, rows);
                    for (a, b) in plain.iter().flatten().zip(found.iter().flatten()) {
                        assert!((a - b).abs() < 1e-4, "{bits:?} {instructions:?}: {a} {b}");
                    }
                }
            }
        }
    }
}
