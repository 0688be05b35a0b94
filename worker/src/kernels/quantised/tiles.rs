//! Products of several rows on the matrix unit of newer Intel processors (AMX):
//! sixteen rows times sixteen columns in one instruction. Sums within a group
//! are whole numbers and groups are added as everywhere else, so that a row has
//! the same bits here as alone.

use super::block::QuantisedBlock;
use super::{Bits, PANEL};

/// Most rows of one call.
pub(super) const ROWS: usize = 16;

/// Whether so many rows are worth it: fewer are done before the unit has
/// stored its sums, and 4-bit weights have to be widened for it first.
pub(super) fn are_worth(bits: Bits, rows: usize) -> bool {
    let least = match bits {
        Bits::Eight => 8,
        Bits::Four => 12,
    };
    rows >= least && are_there()
}

/// Whether this processor has the unit and the system lets this process use it.
pub(super) fn are_there() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        static THERE: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
        *THERE.get_or_init(amx::ask)
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    false
}

impl QuantisedBlock<'_> {
    /// Up to [`ROWS`] rows times one panel. Only where [`are_there`] says so.
    pub(super) fn run_on_tiles(self, bits: Bits, rows: usize) -> [[f32; PANEL]; ROWS] {
        assert!((1..=ROWS).contains(&rows), "a block has 1 to {ROWS} rows");
        assert!(are_there(), "there is a matrix unit");
        self.check(bits, rows);
        let mut out = [[0f32; PANEL]; ROWS];
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        // SAFETY: the processor has them, and the lengths were checked.
        unsafe {
            match bits {
                Bits::Eight => self.amx::<false>(rows, &mut out),
                Bits::Four => self.amx::<true>(rows, &mut out),
            }
        }
        out
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx {
    use super::super::QUAD;
    use super::*;
    use crate::kernels::Instructions;
    use std::arch::asm;
    use std::arch::x86_64::*;

    /// `arch_prctl` of Linux, its request for a part of the processor's state,
    /// and the number of the matrix unit's.
    const ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;

    /// Asks processor and system.
    pub(super) fn ask() -> bool {
        // Leaf 7 of CPUID, EDX: tiles and their products of bytes.
        const TILE: u32 = 1 << 24;
        const INT8: u32 = 1 << 25;
        if Instructions::detect() < Instructions::Avx512 {
            return false;
        }
        if __cpuid(0).eax < 7 || __cpuid_count(7, 0).edx & (TILE | INT8) != TILE | INT8 {
            return false;
        }
        let mut result = ARCH_PRCTL;
        // SAFETY: the call changes what the process may use and no memory.
        unsafe {
            asm!(
                "syscall",
                inout("rax") result,
                in("rdi") ARCH_REQ_XCOMP_PERM,
                in("rsi") XFEATURE_XTILEDATA,
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        result == 0
    }

    /// What the tiles hold: 0 rows of activations, 1 and 2 the columns of a
    /// panel, 3 and 4 their sums.
    #[repr(C, align(64))]
    struct Shapes {
        palette: u8,
        start_row: u8,
        reserved: [u8; 14],
        bytes: [u16; 16],
        rows: [u8; 16],
    }

    /// Groups whose sums are made before the sums of one are read: what the
    /// unit stores is not at hand at once.
    const BEHIND: usize = 1;

    /// Bytes of weights that are asked of memory before they are used.
    const AHEAD: usize = 4096;

    /// Bytes from one quad of a panel to the next, and from one row of sums to the next.
    const STRIDE: usize = PANEL * QUAD;

    #[repr(align(64))]
    struct Sums([[i32; PANEL]; ROWS]);

    #[repr(align(64))]
    struct Bytes([u8; 64 * PANEL]);

    impl QuantisedBlock<'_> {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        pub(super) unsafe fn amx<const FOUR: bool>(
            self,
            rows: usize,
            out: &mut [[f32; PANEL]; ROWS],
        ) {
            let bits = if FOUR { Bits::Four } else { Bits::Eight };
            let group = bits.group();
            let mut shapes = Shapes {
                palette: 1,
                start_row: 0,
                reserved: [0; 14],
                bytes: [0; 16],
                rows: [0; 16],
            };
            shapes.bytes[..5].copy_from_slice(&[group as u16, 64, 64, 64, 64]);
            let quads = (group / QUAD) as u8;
            shapes.rows[..5].copy_from_slice(&[rows as u8, quads, quads, rows as u8, rows as u8]);
            let mut sums = [const { Sums([[0; PANEL]; ROWS]) }; BEHIND + 1];
            let mut bytes = Bytes([0; 64 * PANEL]);
            // SAFETY: the lengths were checked; the tiles are this thread's own
            // from here to their release.
            unsafe {
                asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack, readonly));
                for g in 0..self.groups {
                    let mut weights = self.weights.as_ptr().add(g * bits.group_bytes());
                    // The tiles' loads come too late to be foreseen by the processor.
                    for line in (0..bits.group_bytes()).step_by(64) {
                        _mm_prefetch::<_MM_HINT_T0>(weights.wrapping_add(AHEAD + line).cast());
                    }
                    if FOUR {
                        widen(weights, &mut bytes);
                        weights = bytes.0.as_ptr();
                    }
                    let values = self.values.as_ptr().add(g * group);
                    multiply(values, self.stride, weights, &mut sums[g % (BEHIND + 1)]);
                    if g >= BEHIND {
                        let done = g - BEHIND;
                        self.add_group(done, rows, &sums[done % (BEHIND + 1)], out);
                    }
                }
                for done in self.groups.saturating_sub(BEHIND)..self.groups {
                    self.add_group(done, rows, &sums[done % (BEHIND + 1)], out);
                }
                asm!("tilerelease", options(nostack, nomem));
            }
        }

        /// Adds the sums of a group, scaled, to those of the groups before it.
        #[inline]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        unsafe fn add_group(
            &self,
            g: usize,
            rows: usize,
            sums: &Sums,
            out: &mut [[f32; PANEL]; ROWS],
        ) {
            // SAFETY: the lengths were checked.
            unsafe {
                let scales = self.scales.as_ptr().add(g * PANEL).cast::<__m256i>();
                let left = _mm512_cvtph_ps(scales.read_unaligned());
                let right = _mm512_cvtph_ps(scales.add(1).read_unaligned());
                for (r, out) in out.iter_mut().enumerate().take(rows) {
                    let at = r * self.groups + g;
                    let scale = _mm512_set1_ps(*self.row_scales.get_unchecked(at));
                    let excess = _mm512_set1_epi32(*self.excess.get_unchecked(at));
                    let (from, to) = (sums.0[r].as_ptr(), out.as_mut_ptr());
                    for (place, scales) in [(0, left), (16, right)] {
                        let sum = _mm512_loadu_si512(from.add(place).cast());
                        let sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, excess));
                        let total = _mm512_loadu_ps(to.add(place));
                        let total = _mm512_fmadd_ps(sum, _mm512_mul_ps(scales, scale), total);
                        _mm512_storeu_ps(to.add(place), total);
                    }
                }
            }
        }
    }

    /// One group of 4-bit weights as bytes, quad by quad.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn widen(weights: *const u8, to: &mut Bytes) {
        let low = _mm512_set1_epi8(15);
        let to = to.0.as_mut_ptr();
        for half in 0..2 * Bits::Four.group() / QUAD / 2 {
            let (pair, side) = (half / 2, half % 2 * 64);
            // SAFETY: a group has that many bytes, and twice as many fit.
            unsafe {
                let both = _mm512_loadu_si512(weights.add(half * 64).cast());
                let even = _mm512_and_si512(both, low);
                let odd = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
                let even_at = to.add(2 * pair * STRIDE + side);
                _mm512_storeu_si512(even_at.cast(), even);
                _mm512_storeu_si512(even_at.add(STRIDE).cast(), odd);
            }
        }
    }

    /// Rows of `values` times one group of a panel.
    #[inline(always)]
    unsafe fn multiply(values: *const i8, stride: usize, weights: *const u8, sums: &mut Sums) {
        // SAFETY: the tiles were given their shapes, which the lengths fill.
        unsafe {
            asm!(
                "tilezero tmm3",
                "tilezero tmm4",
                "tileloadd tmm0, [{values} + {stride}]",
                "tileloadd tmm1, [{weights} + {step}]",
                "tileloadd tmm2, [{weights} + {step} + 64]",
                "tdpbsud tmm3, tmm0, tmm1",
                "tdpbsud tmm4, tmm0, tmm2",
                "tilestored [{sums} + {step}], tmm3",
                "tilestored [{sums} + {step} + 64], tmm4",
                values = in(reg) values,
                stride = in(reg) stride,
                weights = in(reg) weights,
                step = in(reg) STRIDE,
                sums = in(reg) sums.0.as_mut_ptr(),
                out("tmm0") _,
                out("tmm1") _,
                out("tmm2") _,
                out("tmm3") _,
                out("tmm4") _,
                options(nostack),
            );
        }
    }
}
