//! A file as memory: weights are read where they lie, so that loading needs no
//! second copy of the file.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

/// A read-only map of a whole file.
#[derive(Debug)]
pub(crate) struct Mapped(memmap2::Mmap);

impl Mapped {
    /// Maps the file at `path`.
    #[allow(unsafe_code)]
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: a checkpoint is not written while it is served; who shortens
        // a mapped file gets SIGBUS, as from any program that maps it.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self(map))
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
