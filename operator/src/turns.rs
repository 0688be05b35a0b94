//! Whose call of the API server goes out next. It answers a few calls at once
//! about as fast as many, so no more than that are under way. Those that wait go in
//! the order in which their deployments were asked for, so that what was begun comes
//! to its end: were each deployment served a little, all would be late, and whatever
//! befell one meanwhile would wait for the end of its long first visit. What answers
//! an event for the first time waits for none of the rest: some turns are kept for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// How long a rush lasts after a call had to wait: what our own writes set off
/// in others is still under way.
const RUSH: Duration = Duration::from_secs(2);

/// The turns that there are.
#[derive(Debug)]
pub struct Turns {
    all: usize,
    /// Those that not only first answers may have.
    common: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    all: usize,
    common: usize,
    first: Line,
    rest: Line,
    /// Of the next one in a line.
    number: u64,
    /// When a call last had to wait that was no first answer.
    waited: Option<Instant>,
}

/// Who waits, in order.
type Line = BTreeMap<(Instant, u64), oneshot::Sender<Turn>>;

/// The right to one call, for as long as the value lives.
#[derive(Debug)]
pub struct Turn {
    turns: Arc<Turns>,
    first: bool,
}

impl Turns {
    /// So many calls at once, at least two. A quarter is kept for first answers.
    #[must_use]
    pub fn new(calls: u16) -> Self {
        let all = usize::from(calls.max(2));
        Self {
            all,
            common: all - all.div_ceil(4),
            state: Mutex::default(),
        }
    }

    /// Waits for a turn, behind those whose `order` is earlier.
    pub async fn take(self: &Arc<Self>, first: bool, order: Instant) -> Turn {
        let waiting = {
            let mut state = self.lock();
            if self.is_free(&state, first) {
                None
            } else {
                let (sender, receiver) = oneshot::channel();
                state.number += 1;
                let place = (order, state.number);
                if first {
                    state.first.insert(place, sender);
                } else {
                    state.waited = Some(shell::clock::now());
                    state.rest.insert(place, sender);
                }
                Some(receiver)
            }
        };
        let Some(waiting) = waiting else {
            return self.enter(first);
        };
        // Nobody leaves a line unserved, since it lives as long as this value.
        waiting.await.unwrap_or_else(|_| self.enter(first))
    }

    /// Whether what can wait should: calls wait for common turns, or did a moment ago.
    #[must_use]
    pub fn are_short(&self, now: Instant) -> bool {
        let waited = self.lock().waited;
        waited.is_some_and(|waited| now.saturating_duration_since(waited) < RUSH)
    }

    fn is_free(&self, state: &State, first: bool) -> bool {
        state.all < self.all && (first || state.common < self.common)
    }

    fn enter(self: &Arc<Self>, first: bool) -> Turn {
        let mut state = self.lock();
        state.all += 1;
        state.common += usize::from(!first);
        Turn {
            turns: self.clone(),
            first,
        }
    }

    /// A turn came back: who is next, and whether as a first answer?
    fn next(&self) -> Option<(oneshot::Sender<Turn>, bool)> {
        let mut state = self.lock();
        if self.is_free(&state, true)
            && let Some((_, next)) = state.first.pop_first()
        {
            return Some((next, true));
        }
        if self.is_free(&state, false) {
            return state.rest.pop_first().map(|(_, next)| (next, false));
        }
        None
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        {
            let mut state = self.turns.lock();
            state.all -= 1;
            state.common -= usize::from(!self.first);
        }
        if let Some((next, first)) = self.turns.next() {
            // Who no longer waits gives the turn on by dropping it.
            let _ = next.send(self.turns.enter(first));
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn turns(calls: u16) -> (Arc<Turns>, Instant) {
        (Arc::new(Turns::new(calls)), shell::clock::now())
    }

    #[test]
    fn a_first_answer_finds_a_turn_when_the_rest_waits() {
        let (turns, now) = turns(4);
        let take = |first| turns.take(first, now).now_or_never();
        let common: Vec<_> = (0..3).map(|_| take(false)).collect();
        assert!(common.iter().all(Option::is_some));
        assert!(!turns.are_short(shell::clock::now()), "nobody waited");
        assert!(take(false).is_none());
        assert!(turns.are_short(shell::clock::now()));
        let first = take(true);
        assert!(first.is_some());
        assert!(take(true).is_none(), "four at most");
        drop(common);
        assert!(!turns.are_short(shell::clock::now() + RUSH));
        assert!(take(false).is_some());
    }

    #[test]
    fn one_call_at_a_time_leaves_no_turn_for_the_rest_and_so_there_are_two() {
        let (turns, now) = turns(1);
        let common = turns.take(false, now).now_or_never();
        assert!(common.is_some());
        assert!(turns.take(true, now).now_or_never().is_some());
    }

    #[test]
    fn the_oldest_goes_first_and_who_gave_up_is_passed_over() {
        let (turns, now) = turns(2);
        let busy = turns.take(false, now).now_or_never();
        let order = |seconds| now + Duration::from_secs(seconds);
        let mut young = Box::pin(turns.take(false, order(3)));
        let mut old = Box::pin(turns.take(false, order(1)));
        let mut gone = Box::pin(turns.take(false, order(0)));
        assert!(young.as_mut().now_or_never().is_none());
        assert!(old.as_mut().now_or_never().is_none());
        assert!(gone.as_mut().now_or_never().is_none());
        drop(gone);
        drop(busy);
        assert!(young.as_mut().now_or_never().is_none());
        let turn = old.as_mut().now_or_never();
        assert!(turn.is_some());
        drop(turn);
        assert!(young.as_mut().now_or_never().is_some());
    }

    #[test]
    fn a_turn_that_nobody_took_up_comes_back() {
        let (turns, now) = turns(2);
        let busy = turns.take(false, now).now_or_never();
        let mut waiting = Box::pin(turns.take(false, now));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(busy);
        drop(waiting);
        assert!(turns.take(false, now).now_or_never().is_some());
    }
}
