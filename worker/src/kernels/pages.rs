//! Memory asked from the system in one piece. Packed weights take huge pages where it has
//! them: a product of one row reads every weight once, and with small pages a good part of
//! its time goes to finding them. Keys and values take small ones: a slot of few tokens
//! would hold 2 MiB for every head otherwise, and what is given back would be little.

use half::{bf16, f16};
use memmap2::{Advice, MmapMut};
use std::alloc::{Layout, handle_alloc_error};
use std::fmt::{self, Debug, Formatter};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// A number of which any bytes are one, zeros being the number 0.
///
/// # Safety
/// Every pattern of bits is a value, and its alignment is at most a page's.
pub(super) unsafe trait Plain: Copy + Send + Sync {}

// SAFETY: numbers without invalid patterns.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for i16 {}
// SAFETY: as above.
unsafe impl Plain for f16 {}
// SAFETY: as above.
unsafe impl Plain for bf16 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}

/// A slice of numbers, zero at first.
pub(super) struct Pages<T> {
    /// `None` where there are none.
    map: Option<MmapMut>,
    len: usize,
    of: PhantomData<T>,
}

/// Of the system's pages.
#[derive(Clone, Copy)]
enum Size {
    Huge,
    Small,
}

impl<T: Plain> Pages<T> {
    /// Room for `len` numbers that are all written soon and read often.
    pub(super) fn huge(len: usize) -> Self {
        Self::zeroed(len, Size::Huge)
    }

    /// Room for `len` numbers of which only those that are written take memory.
    pub(super) fn small(len: usize) -> Self {
        Self::zeroed(len, Size::Small)
    }

    fn zeroed(len: usize, size: Size) -> Self {
        let bytes = len * size_of::<T>();
        let map = (bytes > 0).then(|| {
            let map = MmapMut::map_anon(bytes).unwrap_or_else(|_| {
                handle_alloc_error(
                    Layout::from_size_align(bytes, 4096).unwrap_or(Layout::new::<T>()),
                )
            });
            // A system without huge pages refuses either, and needs neither.
            #[cfg(target_os = "linux")]
            let _ = map.advise(match size {
                Size::Huge => Advice::HugePage,
                Size::Small => Advice::NoHugePage,
            });
            #[cfg(not(target_os = "linux"))]
            let _ = size;
            map
        });
        Self {
            map,
            len,
            of: PhantomData,
        }
    }
}

impl<T: Plain> Deref for Pages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.map {
            // SAFETY: the map has room for `len` numbers, begins at a page, and any bytes are numbers.
            Some(map) => unsafe { std::slice::from_raw_parts(map.as_ptr().cast(), self.len) },
            None => &[],
        }
    }
}

impl<T: Plain> DerefMut for Pages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match &mut self.map {
            // SAFETY: as above, and the map is borrowed for as long as the slice.
            Some(map) => unsafe {
                std::slice::from_raw_parts_mut(map.as_mut_ptr().cast(), self.len)
            },
            None => &mut [],
        }
    }
}

/// Gives the whole pages inside `values` back to the system. What was in them is 0 from
/// then on, and takes memory again when it is written.
pub(super) fn give_back<T: Plain>(values: &mut [T]) {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: it only reads a setting of the system.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let Some(page) = usize::try_from(page).ok().filter(|page| *page > 0) else {
            return;
        };
        let begin = values.as_mut_ptr();
        let before = begin.addr().next_multiple_of(page) - begin.addr();
        let inside = size_of_val(values).saturating_sub(before) / page * page;
        if inside > 0 {
            // SAFETY: the pages lie inside `values`, which nobody else sees meanwhile. They are
            // private memory of the process, where new pages are zeros, and those are numbers.
            // A system that refuses has changed nothing.
            unsafe { libc::madvise(begin.byte_add(before).cast(), inside, libc::MADV_DONTNEED) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = values;
}

impl<T> Debug for Pages<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "Pages({})", self.len)
    }
}
