//! The one inner loop of all dense products: a few rows times one panel of 32
//! columns, accumulated in f32 registers, each number by one addition after
//! another along the inner dimension. Panels may hold 16-bit numbers, which are
//! widened on the way: that is exact and halves what is read from memory.

use super::{Instructions, PANEL};

/// Most rows that one call may take.
pub(super) const ROWS: usize = 12;

/// How a panel's numbers are stored.
pub(super) type Element = u8;
/// As f32.
pub(super) const F32: Element = 0;
/// As IEEE half precision.
pub(super) const F16: Element = 1;
/// As the upper half of an f32.
pub(super) const BF16: Element = 2;

/// A few rows times one panel: `c[r][j] = sum over p of a[r][p] * panel[p][j]`.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    /// First row of the left factor.
    pub(super) a: *const f32,
    /// Distance between its rows.
    pub(super) a_stride: usize,
    /// `[inner, 32]` of the element that [`Block::run`] is called with.
    pub(super) panel: *const u8,
    /// Length of the sums.
    pub(super) inner: usize,
    /// First row of the result.
    pub(super) c: *mut f32,
    /// Distance between its rows.
    pub(super) c_stride: usize,
    /// Columns to write, at most 32.
    pub(super) columns: usize,
    /// Whether the sums go on from what the result holds. That gives the same
    /// bits as one long sum, as storing an f32 is exact.
    pub(super) accumulate: bool,
}

impl Block {
    /// Computes `rows` rows, any number.
    ///
    /// # Safety
    /// The pointers are valid for the sizes given, nobody else touches the
    /// result, and the processor has the `instructions`.
    pub(super) unsafe fn run<const E: Element>(mut self, instructions: Instructions, rows: usize) {
        let mut left = rows;
        while left > 0 {
            let now = left.min(ROWS);
            // SAFETY: the caller's promise holds for each part of the rows.
            unsafe {
                self.some_rows::<E>(instructions, now);
                self.a = self.a.add(now * self.a_stride);
                self.c = self.c.add(now * self.c_stride);
            }
            left -= now;
        }
    }

    unsafe fn some_rows<const E: Element>(self, instructions: Instructions, rows: usize) {
        macro_rules! dispatch {
            ($kernel:ident, $($n:literal)*) => {
                match rows {
                    $($n => self.$kernel::<$n, E>(),)*
                    _ => unreachable!("a block has 1 to {ROWS} rows"),
                }
            };
        }
        // SAFETY: the caller's promise.
        unsafe {
            match instructions {
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx512 => dispatch!(avx512, 1 2 3 4 5 6 7 8 9 10 11 12),
                #[cfg(target_arch = "x86_64")]
                Instructions::Avx2 => dispatch!(avx2, 1 2 3 4 5 6 7 8 9 10 11 12),
                _ => dispatch!(plain, 1 2 3 4 5 6 7 8 9 10 11 12),
            }
        }
    }

    unsafe fn plain<const R: usize, const E: Element>(self) {
        for r in 0..R {
            let mut sums = [0f32; PANEL];
            if self.accumulate {
                for (j, sum) in sums.iter_mut().enumerate().take(self.columns) {
                    // SAFETY: the caller's promise.
                    *sum = unsafe { *self.c.add(r * self.c_stride + j) };
                }
            }
            for p in 0..self.inner {
                // SAFETY: the caller's promise.
                let x = unsafe { *self.a.add(r * self.a_stride + p) };
                for (j, sum) in sums.iter_mut().enumerate() {
                    let at = p * PANEL + j;
                    // SAFETY: the caller's promise.
                    let weight = unsafe {
                        match E {
                            F16 => (*self.panel.cast::<half::f16>().add(at)).to_f32(),
                            BF16 => (*self.panel.cast::<half::bf16>().add(at)).to_f32(),
                            _ => *self.panel.cast::<f32>().add(at),
                        }
                    };
                    *sum += x * weight;
                }
            }
            for (j, sum) in sums.iter().enumerate().take(self.columns) {
                // SAFETY: the caller's promise.
                unsafe { *self.c.add(r * self.c_stride + j) = *sum };
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512<const R: usize, const E: Element>(self) {
        use std::arch::x86_64::*;
        let mask = ((1u64 << self.columns) - 1) as u32;
        let mut sums = [[_mm512_setzero_ps(); 2]; R];
        if self.accumulate {
            for (r, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the mask leaves out what lies past the columns.
                unsafe {
                    let c = self.c.add(r * self.c_stride);
                    sum[0] = _mm512_maskz_loadu_ps(mask as u16, c);
                    if self.columns > 16 {
                        sum[1] = _mm512_maskz_loadu_ps((mask >> 16) as u16, c.add(16));
                    }
                }
            }
        }
        for p in 0..self.inner {
            // SAFETY: the caller's promise.
            unsafe {
                let left = avx512_load::<E>(self.panel, p * PANEL);
                let right = avx512_load::<E>(self.panel, p * PANEL + 16);
                for (r, sum) in sums.iter_mut().enumerate() {
                    let x = _mm512_set1_ps(*self.a.add(r * self.a_stride + p));
                    sum[0] = _mm512_fmadd_ps(x, left, sum[0]);
                    sum[1] = _mm512_fmadd_ps(x, right, sum[1]);
                }
            }
        }
        for (r, sum) in sums.iter().enumerate() {
            // SAFETY: the mask leaves out what lies past the columns.
            unsafe {
                let c = self.c.add(r * self.c_stride);
                _mm512_mask_storeu_ps(c, mask as u16, sum[0]);
                if self.columns > 16 {
                    _mm512_mask_storeu_ps(c.add(16), (mask >> 16) as u16, sum[1]);
                }
            }
        }
    }

    /// Sixteen registers hold six rows of sixteen columns; the panel is read
    /// once for each half and each half of the rows.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn avx2<const R: usize, const E: Element>(self) {
        use std::arch::x86_64::*;
        #[inline]
        #[target_feature(enable = "avx2,f16c")]
        unsafe fn load<const E: Element>(panel: *const u8, at: usize) -> __m256 {
            // SAFETY: the caller's promise of `run`.
            unsafe {
                match E {
                    F16 => _mm256_cvtph_ps(_mm_loadu_si128(panel.cast::<u16>().add(at).cast())),
                    BF16 => {
                        let half = _mm_loadu_si128(panel.cast::<u16>().add(at).cast());
                        _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))
                    }
                    _ => _mm256_loadu_ps(panel.cast::<f32>().add(at)),
                }
            }
        }
        for (half, first) in [0, 16].into_iter().flat_map(|half| [(half, 0), (half, 6)]) {
            if first >= R || half >= self.columns {
                continue;
            }
            let rows = (R - first).min(6);
            let mut sums = [[_mm256_setzero_ps(); 2]; 6];
            let columns = (self.columns - half).min(16);
            if self.accumulate {
                for (r, sum) in sums.iter_mut().enumerate().take(rows) {
                    let mut line = [0f32; 16];
                    // SAFETY: only places inside the columns are read.
                    unsafe {
                        let c = self.c.add((first + r) * self.c_stride + half);
                        std::ptr::copy_nonoverlapping(c, line.as_mut_ptr(), columns);
                        sum[0] = _mm256_loadu_ps(line.as_ptr());
                        sum[1] = _mm256_loadu_ps(line.as_ptr().add(8));
                    }
                }
            }
            for p in 0..self.inner {
                // SAFETY: the caller's promise.
                unsafe {
                    let left = load::<E>(self.panel, p * PANEL + half);
                    let right = load::<E>(self.panel, p * PANEL + half + 8);
                    for (r, sum) in sums.iter_mut().enumerate() {
                        if r < rows {
                            let x = _mm256_set1_ps(*self.a.add((first + r) * self.a_stride + p));
                            sum[0] = _mm256_fmadd_ps(x, left, sum[0]);
                            sum[1] = _mm256_fmadd_ps(x, right, sum[1]);
                        }
                    }
                }
            }
            for (r, sum) in sums.iter().enumerate().take(rows) {
                let mut line = [0f32; 16];
                // SAFETY: the line has sixteen places, and only those inside the columns are copied.
                unsafe {
                    _mm256_storeu_ps(line.as_mut_ptr(), sum[0]);
                    _mm256_storeu_ps(line.as_mut_ptr().add(8), sum[1]);
                    let c = self.c.add((first + r) * self.c_stride + half);
                    std::ptr::copy_nonoverlapping(line.as_ptr(), c, columns);
                }
            }
        }
    }
}

/// Sixteen of a panel's numbers from `at` on.
///
/// # Safety
/// They lie inside the panel.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn avx512_load<const E: Element>(panel: *const u8, at: usize) -> std::arch::x86_64::__m512 {
    use std::arch::x86_64::*;
    // SAFETY: the caller's promise.
    unsafe {
        let half = || _mm256_loadu_si256(panel.cast::<u16>().add(at).cast());
        match E {
            F16 => _mm512_cvtph_ps(half()),
            BF16 => _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half()), 16)),
            _ => _mm512_loadu_ps(panel.cast::<f32>().add(at)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COUNT: usize = 4;

    /// Rows times a panel whose numbers are of element `E`.
    fn products<const E: Element>(
        panel: &[u8],
        inner: usize,
        instructions: Instructions,
    ) -> Vec<f32> {
        let a: Vec<f32> = (0..COUNT * inner)
            .map(|i| (i as f32 * 0.37).sin())
            .collect();
        let mut out = vec![0f32; COUNT * PANEL];
        let block = Block {
            a: a.as_ptr(),
            a_stride: inner,
            panel: panel.as_ptr(),
            inner,
            c: out.as_mut_ptr(),
            c_stride: PANEL,
            columns: PANEL,
            accumulate: false,
        };
        // SAFETY: the panel is whole, every row has a result of its own, and the processor has
        // at least these instructions.
        unsafe { block.run::<E>(instructions, COUNT) };
        out
    }

    fn agrees<const E: Element>(panel: &[u8], inner: usize) {
        let wanted = products::<E>(panel, inner, Instructions::Plain);
        for instructions in [Instructions::Avx2, Instructions::Avx512] {
            if instructions <= Instructions::detect() {
                let found = products::<E>(panel, inner, instructions);
                let largest = wanted.iter().fold(0f32, |most, x| most.max(x.abs()));
                let far = |(a, b): (&f32, &f32)| (a - b).abs() > 1e-5 * largest;
                assert!(
                    !wanted.iter().zip(&found).any(far),
                    "element {E}, {instructions:?}"
                );
            }
        }
    }

    #[test]
    fn every_instruction_set_reads_every_kind_of_number() {
        let inner = 21;
        let numbers: Vec<f32> = (0..inner * PANEL)
            .map(|i| (i as f32 * 0.91).cos())
            .collect();
        fn bytes<const N: usize>(numbers: &[f32], of: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
            numbers.iter().flat_map(|x| of(*x)).collect()
        }
        agrees::<F32>(&bytes(&numbers, f32::to_ne_bytes), inner);
        agrees::<F16>(
            &bytes(&numbers, |x| half::f16::from_f32(x).to_ne_bytes()),
            inner,
        );
        agrees::<BF16>(
            &bytes(&numbers, |x| half::bf16::from_f32(x).to_ne_bytes()),
            inner,
        );
    }
}
