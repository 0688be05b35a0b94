//! The way from events to reconciliations, and which event each of them answers.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::channel::mpsc;

use crate::drive::Ask;
use crate::key::Key;

/// Where events ask for reconciliations, and since when one is asked for.
#[derive(Debug)]
pub struct Queue {
    sender: mpsc::UnboundedSender<Ask>,
    asked: Mutex<HashMap<Key, Asked>>,
}

/// The event that a reconciliation answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// When it came.
    pub at: Instant,
    /// Whether it is the echo of a write of our own, which seldom has an answer.
    pub echo: bool,
}

impl Asked {
    /// The one of two to be measured: that of others, then the earlier one.
    fn first(self, other: Self) -> Self {
        if (self.echo, self.at) <= (other.echo, other.at) {
            self
        } else {
            other
        }
    }
}

impl Queue {
    /// An empty one, and where its reconciliations come out.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Ask>) {
        let (sender, receiver) = mpsc::unbounded();
        let asked = Mutex::default();
        (Self { sender, asked }, receiver)
    }

    /// Asks for a reconciliation that answers what comes within `gather`, too.
    pub fn push(&self, key: &Key, gather: Duration, echo: bool) {
        let at = shell::clock::now();
        self.put_back(key, Asked { at, echo });
        let key = key.clone();
        // The other end goes only when the controller does.
        let _ = self.sender.unbounded_send(Ask { key, gather });
    }

    /// The first event that the reconciliation now starting answers.
    pub fn take_asked(&self, key: &Key) -> Option<Asked> {
        self.asked().remove(key)
    }

    /// That reconciliation answered nothing: the next one answers the same event.
    pub fn put_back(&self, key: &Key, asked: Asked) {
        let mut all = self.asked();
        let first = all.entry(key.clone()).or_insert(asked);
        *first = asked.first(*first);
    }

    fn asked(&self) -> MutexGuard<'_, HashMap<Key, Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_measured_from_what_others_did_and_from_an_echo_for_want_of_that() {
        let (queue, _asks) = Queue::new();
        let key = Key::new("ns", "llava");
        let start = shell::clock::now();
        let asked = |seconds, echo| {
            let at = start + Duration::from_secs(seconds);
            Asked { at, echo }
        };
        for (all, first) in [
            (vec![asked(2, true), asked(1, true)], asked(1, true)),
            (vec![asked(1, true), asked(2, false)], asked(2, false)),
            (
                vec![asked(3, false), asked(1, true), asked(2, false)],
                asked(2, false),
            ),
        ] {
            all.into_iter()
                .for_each(|asked| queue.put_back(&key, asked));
            assert_eq!(queue.take_asked(&key), Some(first));
            assert_eq!(queue.take_asked(&key), None);
        }
    }
}
