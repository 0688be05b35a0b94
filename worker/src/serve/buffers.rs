//! The bytes that requests bring and that wait to be read: bodies, and images
//! fetched for them. Each is bounded by itself; here they are bounded in sum.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::refusal::Refusal;

/// The bytes held, and their limit.
#[derive(Clone, Debug)]
pub(super) struct Buffers {
    held: Arc<AtomicUsize>,
    most: usize,
}

/// Bytes of one request; given back on drop.
#[derive(Debug)]
pub(super) struct Share {
    buffers: Buffers,
    bytes: usize,
}

impl Buffers {
    /// Room for so many bytes.
    #[must_use]
    pub(super) fn new(most: usize) -> Self {
        Self {
            held: Arc::default(),
            most,
        }
    }

    /// A share that is empty so far.
    #[must_use]
    pub(super) fn share(&self) -> Share {
        Share {
            buffers: self.clone(),
            bytes: 0,
        }
    }
}

impl Share {
    /// Takes more bytes.
    ///
    /// # Errors
    /// 503 when there is no room.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), Refusal> {
        let Buffers { held, most } = &self.buffers;
        let taken = held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            held.checked_add(bytes).filter(|all| all <= most)
        });
        taken.map_err(|_| Refusal::buffers_full())?;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.buffers.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_so_many_bytes_and_it_comes_back() {
        let buffers = Buffers::new(10);
        let (mut first, mut second) = (buffers.share(), buffers.share());
        first.grow(4).unwrap();
        first.grow(3).unwrap();
        assert_eq!(second.grow(4).unwrap_err().code(), "buffers_full");
        second.grow(3).unwrap();
        drop(first);
        second.grow(7).unwrap();
        assert_eq!(second.grow(usize::MAX).unwrap_err().code(), "buffers_full");
        drop(second);
        assert_eq!(buffers.held.load(Ordering::Relaxed), 0);
    }
}
