//! Products of whole numbers of 16 bits, whose sums are exact: what queries and keys, and
//! weights and values, come to. A left factor is taken apart in two such numbers, so that it is
//! as good as an f32, and neither has to become one on the way: two of them are multiplied and
//! added in one instruction.

use super::super::{Instructions, PANEL};

/// The right factor's numbers, and the left one's, are no larger than this.
pub(super) const LARGEST: f32 = i16::MAX as f32;

/// Left factors are `(high + low / fine) * scale`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fine(f32);

impl Fine {
    /// For sums over `inner` numbers none of which has a high part larger than the first of
    /// what this gives. No sum of high parts, or of low ones, leaves an i32 then.
    pub(super) fn of_inner(inner: usize) -> (f32, Self) {
        let room = (i32::MAX as usize) / (inner.max(1) * i16::MAX as usize);
        let high = 1u16 << room.clamp(1, 1 << 14).ilog2();
        // What is left of a number is a half at most.
        (f32::from(high), Self(2.0 * f32::from(high)))
    }

    /// For sums over at most [`WEIGHTS`] numbers that add up to [`LARGEST`] at most.
    pub(super) const OF_WEIGHTS: Self = Self(256.0);

    /// What numbers are split by.
    pub(super) fn get(self) -> f32 {
        self.0
    }
}

/// So many low parts of weights, 128 at most each, may be added up.
pub(super) const WEIGHTS: usize = 512;

/// One row times one panel: `out[j] += sum over p of (high[p] + low[p] / fine) * panel[p][j]`.
#[derive(Clone, Copy)]
pub(super) struct Lane {
    /// `[2 * pairs]`.
    pub(super) high: *const i16,
    /// `[2 * pairs]`.
    pub(super) low: *const i16,
    /// `[pairs][32][2]`.
    pub(super) panel: *const i16,
    /// `[32]`.
    pub(super) out: *mut f32,
}

/// Lanes whose sums fit the registers together.
const ABREAST: usize = 4;

impl Lane {
    /// Computes all `lanes`. Each one's result is the same whatever the others and whatever the
    /// instructions.
    ///
    /// # Safety
    /// The pointers are valid for the sizes given, no two lanes have the same `out`, nobody else
    /// touches one, no sum leaves an i32, and the processor has the `instructions`.
    pub(super) unsafe fn run(lanes: &[Self], pairs: usize, fine: Fine, instructions: Instructions) {
        let low = 1.0 / fine.0;
        for lanes in lanes.chunks(ABREAST) {
            // SAFETY: the caller's promise.
            unsafe {
                match instructions {
                    #[cfg(target_arch = "x86_64")]
                    Instructions::Avx512 => match *lanes {
                        [a, b, c, d] => Self::avx512([a, b, c, d], pairs, low),
                        [a, b, c] => Self::avx512([a, b, c], pairs, low),
                        [a, b] => Self::avx512([a, b], pairs, low),
                        [a] => Self::avx512([a], pairs, low),
                        _ => unreachable!("a chunk has 1 to {ABREAST} lanes"),
                    },
                    #[cfg(target_arch = "x86_64")]
                    Instructions::Avx2 => lanes.iter().for_each(|lane| lane.avx2(pairs, low)),
                    _ => lanes.iter().for_each(|lane| lane.plain(pairs, low)),
                }
            }
        }
    }

    /// # Safety
    /// As for [`Self::run`].
    unsafe fn plain(self, pairs: usize, fine: f32) {
        let mut sums = [[0i32; PANEL]; 2];
        for pair in 0..pairs {
            for (part, sums) in [self.high, self.low].into_iter().zip(&mut sums) {
                for (j, sum) in sums.iter_mut().enumerate() {
                    for of in 0..2 {
                        // SAFETY: the caller's promise.
                        let (x, y) = unsafe {
                            (
                                *part.add(2 * pair + of),
                                *self.panel.add((pair * PANEL + j) * 2 + of),
                            )
                        };
                        // What is no number may come as any.
                        *sum = sum.wrapping_add(i32::from(x) * i32::from(y));
                    }
                }
            }
        }
        let [high, low] = sums;
        for (j, (high, low)) in high.into_iter().zip(low).enumerate() {
            // SAFETY: the caller's promise.
            unsafe { *self.out.add(j) += (low as f32).mul_add(fine, high as f32) };
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn avx512<const N: usize>(lanes: [Self; N], pairs: usize, fine: f32) {
        use std::arch::x86_64::*;
        // By index, so that all sums stay in registers.
        let mut highs = [[_mm512_setzero_si512(); 2]; N];
        let mut lows = [[_mm512_setzero_si512(); 2]; N];
        for pair in 0..pairs {
            for at in 0..N {
                // SAFETY: the caller's promise.
                unsafe {
                    let lane = &lanes[at];
                    let high = lane.high.cast::<i32>().add(pair).read_unaligned();
                    let low = lane.low.cast::<i32>().add(pair).read_unaligned();
                    let (high, low) = (_mm512_set1_epi32(high), _mm512_set1_epi32(low));
                    for half in 0..2 {
                        let panel = lane.panel.add((pair * 2 + half) * PANEL);
                        let panel = _mm512_loadu_si512(panel.cast());
                        highs[at][half] = _mm512_dpwssd_epi32(highs[at][half], high, panel);
                        lows[at][half] = _mm512_dpwssd_epi32(lows[at][half], low, panel);
                    }
                }
            }
        }
        let fine = _mm512_set1_ps(fine);
        for at in 0..N {
            for half in 0..2 {
                let high = _mm512_cvtepi32_ps(highs[at][half]);
                let low = _mm512_cvtepi32_ps(lows[at][half]);
                // SAFETY: the caller's promise.
                unsafe {
                    let out = lanes[at].out.add(16 * half);
                    let sum = _mm512_fmadd_ps(low, fine, high);
                    _mm512_storeu_ps(out, _mm512_add_ps(_mm512_loadu_ps(out), sum));
                }
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2(self, pairs: usize, fine: f32) {
        use std::arch::x86_64::*;
        // Of eight columns each, the sum of high parts and that of low ones.
        let mut sums = [[_mm256_setzero_si256(); 2]; 4];
        for pair in 0..pairs {
            // SAFETY: the caller's promise.
            unsafe {
                let parts = [self.high, self.low]
                    .map(|part| _mm256_set1_epi32(part.cast::<i32>().add(pair).read_unaligned()));
                for (quarter, sums) in sums.iter_mut().enumerate() {
                    let panel = self.panel.add(pair * 2 * PANEL + 16 * quarter);
                    let panel = _mm256_loadu_si256(panel.cast());
                    for (sum, part) in sums.iter_mut().zip(parts) {
                        *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(part, panel));
                    }
                }
            }
        }
        let fine = _mm256_set1_ps(fine);
        for (quarter, sums) in sums.into_iter().enumerate() {
            let [high, low] = sums.map(|sum| _mm256_cvtepi32_ps(sum));
            // SAFETY: the caller's promise.
            unsafe {
                let out = self.out.add(8 * quarter);
                let sum = _mm256_fmadd_ps(low, fine, high);
                _mm256_storeu_ps(out, _mm256_add_ps(_mm256_loadu_ps(out), sum));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(count: usize, most: f32, seed: f32) -> Vec<i16> {
        let one = |i: usize| ((i as f32 * seed).sin() * most).round() as i16;
        (0..count).map(one).collect()
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits_for_any_number_of_lanes() {
        for inner in [2, 22, 128] {
            let (most, fine) = Fine::of_inner(inner);
            let pairs = inner / 2;
            for count in 1..=2 * ABREAST + 1 {
                let high = words(count * inner, most, 0.37);
                let low = words(count * inner, most, 0.71);
                let panels = words(count * inner * PANEL, LARGEST, 0.91);
                let all = |instructions: Instructions| {
                    let mut out = vec![0.5f32; count * PANEL];
                    let lane = |(at, out): (usize, &mut [f32])| Lane {
                        high: high[at * inner..].as_ptr(),
                        low: low[at * inner..].as_ptr(),
                        panel: panels[at * inner * PANEL..].as_ptr(),
                        out: out.as_mut_ptr(),
                    };
                    let lanes: Vec<_> = out.chunks_mut(PANEL).enumerate().map(lane).collect();
                    // SAFETY: each lane has rows, a panel and a result of its own, and the
                    // processor has at least these instructions.
                    unsafe { Lane::run(&lanes, pairs, fine, instructions) };
                    out
                };
                let found = all(Instructions::Plain);
                for (index, found) in found.iter().enumerate() {
                    let (at, column) = (index / PANEL, index % PANEL);
                    let wanted: f64 = (0..inner)
                        .map(|p| {
                            let place = (at * inner + p / 2 * 2) * PANEL + 2 * column + p % 2;
                            let low = f64::from(low[at * inner + p]) / f64::from(fine.get());
                            (f64::from(high[at * inner + p]) + low) * f64::from(panels[place])
                        })
                        .sum();
                    let off = (f64::from(*found) - 0.5 - wanted).abs();
                    assert!(off <= 1e-6 * wanted.abs() + 100.0, "{found} {wanted}");
                }
                for instructions in [Instructions::Avx2, Instructions::Avx512] {
                    if instructions <= Instructions::detect() {
                        assert_eq!(all(instructions), found, "{instructions:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_largest_numbers_there_can_be_fit_their_sums() {
        for inner in [1usize, 2, 32, 72, 80, 96, 128, 256] {
            let (high, fine) = Fine::of_inner(inner);
            let largest = |part: f32| inner as f64 * f64::from(part) * f64::from(LARGEST);
            assert!(largest(high) <= f64::from(i32::MAX), "{inner}");
            assert!(largest(fine.get() / 2.0) <= f64::from(i32::MAX), "{inner}");
            assert!((256.0..=LARGEST).contains(&high), "{inner}: {high}");
        }
        let weights = WEIGHTS as f64 * f64::from(Fine::OF_WEIGHTS.get() / 2.0);
        assert!(weights * f64::from(LARGEST) <= f64::from(i32::MAX));
        let rounded = f64::from(LARGEST) + WEIGHTS as f64 / 2.0;
        assert!(rounded * f64::from(LARGEST) <= f64::from(i32::MAX));
    }
}
