//! The innermost product with rounded weights: a few rows times one panel, in whole
//! numbers within each group.

use super::super::Instructions;
use super::{Bits, PANEL, QUAD, ROWS};
use half::f16;

/// Up to [`ROWS`] rows times one panel.
#[derive(Clone, Copy)]
pub(super) struct QuantisedBlock<'a> {
    pub(super) weights: &'a [u8],
    pub(super) scales: &'a [f16],
    pub(super) values: &'a [i8],
    pub(super) row_scales: &'a [f32],
    pub(super) excess: &'a [i32],
    pub(super) groups: usize,
    /// Distance between two rows of values.
    pub(super) stride: usize,
}

impl QuantisedBlock<'_> {
    pub(super) fn run(
        self,
        bits: Bits,
        instructions: Instructions,
        rows: usize,
    ) -> [[f32; PANEL]; ROWS] {
        assert!((1..=ROWS).contains(&rows), "a block has 1 to {ROWS} rows");
        self.check(bits, rows);
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

    /// Whether everything is as long as `rows` rows need it.
    pub(super) fn check(&self, bits: Bits, rows: usize) {
        assert!(
            self.stride >= self.groups * bits.group(),
            "rows of values do not overlap"
        );
        assert!(
            self.values.len() >= rows * self.stride,
            "values fill their rows"
        );
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
    }

    fn plain(self, bits: Bits, rows: usize, out: &mut [[f32; PANEL]; ROWS]) {
        let group = bits.group();
        for (r, out) in out.iter_mut().enumerate().take(rows) {
            for g in 0..self.groups {
                let at = r * self.groups + g;
                let values = &self.values[r * self.stride + g * group..][..group];
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
        let stride = self.stride;
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
        let stride = self.stride;
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
