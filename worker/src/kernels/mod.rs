//! Arithmetic on slices, with the instructions that the processor has, and the threads for
//! it: the one place of the worker where `unsafe` is allowed beside the memory map.
//!
//! Every output number is summed in an order that depends only on its own row
//! and column, never on how many rows are computed together or by how many
//! threads. So a sequence gives the same bits alone and in any batch.

#![allow(unsafe_code)]

pub(crate) mod attention;
pub(crate) mod beside;
mod block;
pub(crate) mod packed;
mod pages;
pub(crate) mod pointwise;
pub(crate) mod quantised;

use rayon::prelude::*;
use std::cell::Cell;

/// Columns of a panel: the width that one pass of a kernel computes.
pub(crate) const PANEL: usize = 32;

/// Which instructions to use, found when the program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Instructions {
    /// What every processor of the target has.
    Plain,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, VL and VNNI.
    Avx512,
}

impl Instructions {
    /// The best that this processor has.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let f16 = is_x86_feature_detected!("f16c");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512vnni");
            if avx512 && avx2 && f16 {
                return Self::Avx512;
            }
            if avx2 && f16 {
                return Self::Avx2;
            }
        }
        Self::Plain
    }
}

/// A pointer that several threads write through, each to places of its own.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: whoever makes one splits the places among the threads.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// # Safety
    /// `offset` lies inside the allocation, and no other thread touches what
    /// is written there.
    unsafe fn at(self, offset: usize) -> *mut f32 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(offset) }
    }
}

/// Work with fewer multiplications runs on one thread: waking a second one and
/// waiting for it takes longer than what it could save.
const WORTH_SHARING: usize = 1 << 19;

thread_local! {
    static ALONE: Cell<bool> = const { Cell::new(false) };
}

/// Whether work of so many multiplications is worth a second thread.
pub(crate) fn worth_sharing(multiplications: usize) -> bool {
    multiplications >= WORTH_SHARING && !ALONE.get()
}

/// Does `work` on this thread, and nothing of it on others: they have work of their own.
pub(crate) fn alone<T>(work: impl FnOnce() -> T) -> T {
    struct Back(bool);
    impl Drop for Back {
        fn drop(&mut self) {
            ALONE.set(self.0);
        }
    }
    let _back = Back(ALONE.replace(true));
    work()
}

/// Does `one` for each of `count` indices, on all threads of the pool where
/// the `multiplications` in all are worth it. Each thread works on an `init` of its own.
fn spread<T>(
    count: usize,
    multiplications: usize,
    init: impl Fn() -> T + Send + Sync,
    one: impl Fn(&mut T, usize) + Send + Sync,
) {
    if worth_sharing(multiplications) {
        (0..count).into_par_iter().for_each_init(init, one);
    } else {
        let mut room = init();
        (0..count).for_each(|index| one(&mut room, index));
    }
}
