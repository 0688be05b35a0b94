//! What a reconciliation came to, for whoever decides when the object is looked at again.

use std::time::Duration;

/// How a reconciliation without an error ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Everything that is to be done now is done; after how long to look again without an event.
    Done(Option<Duration>),
    /// The caches were behind, and nothing was decided; after how long to look again.
    Behind(Duration),
}

impl Outcome {
    /// After how long to look again without an event.
    #[must_use]
    pub fn again(self) -> Option<Duration> {
        match self {
            Self::Done(again) => again,
            Self::Behind(wait) => Some(wait),
        }
    }
}
