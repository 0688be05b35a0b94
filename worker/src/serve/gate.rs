//! Who may come in: at most as many requests as run and wait together, and
//! none while draining. A ticket is taken before a body is read, so that memory
//! is bounded whatever arrives.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;

use super::refusal::Refusal;

/// Counts requests from their arrival to their end.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    held: AtomicUsize,
    capacity: usize,
    closed: AtomicBool,
    left: Notify,
}

/// The right to be worked on.
#[derive(Debug)]
pub(super) struct Ticket {
    inner: Arc<Inner>,
    count: Mutex<usize>,
}

impl Gate {
    /// Lets in `capacity` requests at once.
    #[must_use]
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            inner: Arc::new(Inner {
                held: AtomicUsize::new(0),
                capacity,
                closed: AtomicBool::new(false),
                left: Notify::new(),
            }),
        }
    }

    /// Comes in.
    ///
    /// # Errors
    /// 429 when there is no room, 503 while draining.
    pub(super) fn enter(&self) -> Result<Ticket, Refusal> {
        // A full worker that drains will not have room: the caller has to go elsewhere.
        if self.inner.closed.load(Ordering::SeqCst) {
            return Err(Refusal::draining());
        }
        self.inner.take(1)?;
        // Closing happens before waiting for emptiness: whoever came in after it leaves again.
        let ticket = Ticket {
            inner: Arc::clone(&self.inner),
            count: Mutex::new(1),
        };
        if self.inner.closed.load(Ordering::SeqCst) {
            return Err(Refusal::draining());
        }
        Ok(ticket)
    }

    /// Lets nobody in any more.
    pub(super) fn close(&self) {
        self.inner.closed.store(true, Ordering::SeqCst);
    }

    /// Requests inside.
    #[must_use]
    pub(super) fn held(&self) -> usize {
        self.inner.held.load(Ordering::SeqCst)
    }

    /// Waits until nobody is inside.
    pub(super) async fn emptied(&self) {
        loop {
            let left = self.inner.left.notified();
            if self.held() == 0 {
                return;
            }
            left.await;
        }
    }
}

impl Inner {
    fn take(&self, count: usize) -> Result<(), Refusal> {
        self.held
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |held| {
                (held + count <= self.capacity).then_some(held + count)
            })
            .map(|_| ())
            .map_err(|_| Refusal::queue_full())
    }
}

impl Ticket {
    /// Asks for room for more answers to the same request.
    ///
    /// # Errors
    /// 429 when there is no room.
    pub(super) fn add(&self, more: usize) -> Result<(), Refusal> {
        self.inner.take(more)?;
        *self
            .count
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) += more;
        Ok(())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let count = *self
            .count
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        self.inner.held.fetch_sub(count, Ordering::SeqCst);
        self.inner.left.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_so_many_and_it_comes_back() {
        let gate = Gate::new(3);
        let first = gate.enter().unwrap();
        first.add(2).unwrap();
        assert_eq!(gate.enter().unwrap_err().code(), "queue_full");
        drop(first);
        assert_eq!(gate.held(), 0);
        let last = gate.enter().unwrap();
        gate.close();
        assert_eq!(gate.enter().unwrap_err().code(), "draining");
        assert_eq!(gate.held(), 1);
        last.add(2).unwrap();
        assert_eq!(gate.enter().unwrap_err().code(), "draining", "full or not");
        drop(last);
    }
}
