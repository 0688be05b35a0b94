//! Whose call of the API server goes out next. It answers a few calls at once
//! about as fast as many, so no more than that are under way, first come first
//! served; and what answers an event for the first time waits for none of the
//! rest: some turns are kept for it.

use tokio::sync::{Semaphore, SemaphorePermit};

/// The turns that there are.
#[derive(Debug)]
pub struct Turns {
    all: Semaphore,
    /// Those that not only first answers may have.
    common: Semaphore,
}

/// The right to one call, for as long as the value lives.
#[derive(Debug)]
pub struct Turn<'a> {
    _all: Option<SemaphorePermit<'a>>,
    _common: Option<SemaphorePermit<'a>>,
}

impl Turns {
    /// So many calls at once, at least two. A quarter is kept for first answers.
    #[must_use]
    pub fn new(calls: u16) -> Self {
        let calls = usize::from(calls.max(2));
        Self {
            all: Semaphore::new(calls),
            common: Semaphore::new(calls - calls.div_ceil(4)),
        }
    }

    /// Waits for a turn.
    pub async fn take(&self, first: bool) -> Turn<'_> {
        // Nobody closes them, so that neither fails.
        let common = if first {
            None
        } else {
            self.common.acquire().await.ok()
        };
        Turn {
            _all: self.all.acquire().await.ok(),
            _common: common,
        }
    }

    /// Whether what can wait should: all common turns are taken.
    #[must_use]
    pub fn are_short(&self) -> bool {
        self.common.available_permits() == 0
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_first_answer_finds_a_turn_when_the_rest_waits() {
        let turns = Turns::new(4);
        let common: Vec<_> = (0..3).map(|_| turns.take(false).now_or_never()).collect();
        assert!(common.iter().all(Option::is_some) && turns.are_short());
        assert!(turns.take(false).now_or_never().is_none());
        let first = turns.take(true).now_or_never();
        assert!(first.is_some());
        assert!(turns.take(true).now_or_never().is_none(), "four at most");
        drop(common);
        assert!(!turns.are_short());
        assert!(turns.take(false).now_or_never().is_some());
    }

    #[test]
    fn one_call_at_a_time_leaves_no_turn_for_the_rest_and_so_there_are_two() {
        let turns = Turns::new(1);
        let common = turns.take(false).now_or_never();
        assert!(common.is_some());
        assert!(turns.take(true).now_or_never().is_some());
    }
}
