//! What a picture may cost, checked on its header before anything is decoded:
//! a few bytes can promise gigabytes of pixels.

use super::size::Size;

/// Upper bounds on one picture. All of them are inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the file.
    pub bytes: usize,
    /// Pixels along either side.
    pub side: u32,
    /// Pixels in all.
    pub pixels: u64,
    /// Bytes that may be held while it is decoded, the file among them.
    pub memory: u64,
}

impl Default for Limits {
    /// Enough for a 40-megapixel photo, and little enough that no picture takes 256 MiB. What decoders hold
    /// more for has to be smaller: 16 bits with alpha, progressive files, lossless WebP.
    fn default() -> Self {
        Self {
            bytes: protocol::limit::BODY,
            side: 16_384,
            pixels: 40_000_000,
            memory: 248 << 20,
        }
    }
}

/// A limit that a picture exceeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Exceeded {
    /// The file is too long.
    #[error("{bytes} bytes exceed the limit of {limit} bytes")]
    Bytes {
        /// Bytes of the file.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A side is too long.
    #[error("{size} pixels exceed the limit of {limit} pixels on a side")]
    Side {
        /// What the header says.
        size: Size,
        /// The limit in pixels.
        limit: u32,
    },
    /// There are too many pixels.
    #[error("{size} = {} pixels exceed the limit of {limit} pixels", size.pixels())]
    Pixels {
        /// What the header says.
        size: Size,
        /// The limit in pixels.
        limit: u64,
    },
    /// Decoding would need too much memory.
    #[error(
        "{size} pixels in this form take {bytes} bytes to decode, above the limit of {limit} bytes"
    )]
    Memory {
        /// What the header says.
        size: Size,
        /// Bytes that would be held.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
}

impl Limits {
    /// Checks the length of the file.
    pub(super) fn check_bytes(&self, bytes: usize) -> Result<(), Exceeded> {
        if bytes > self.bytes {
            return Err(Exceeded::Bytes {
                bytes,
                limit: self.bytes,
            });
        }
        Ok(())
    }

    /// Checks what the header says: sides, and bytes that decoding takes.
    pub(super) fn check_header(&self, size: Size, bytes: u64) -> Result<(), Exceeded> {
        if size.longest() > self.side {
            return Err(Exceeded::Side {
                size,
                limit: self.side,
            });
        }
        if size.pixels() > self.pixels {
            return Err(Exceeded::Pixels {
                size,
                limit: self.pixels,
            });
        }
        if bytes > self.memory {
            return Err(Exceeded::Memory {
                size,
                bytes,
                limit: self.memory,
            });
        }
        Ok(())
    }
}
