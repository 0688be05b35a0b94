//! When a changed status is worth a write. What people wait for is written at
//! once. What passes by itself while a worker comes up gathers for a moment, and
//! load figures for longer: five workers that start within that moment cost one
//! write of their deployment instead of fifteen. While so much has to be written
//! that calls wait for their turn, what passes gives way for longer.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a change that passes by itself waits for the next one.
pub const SETTLE: Duration = Duration::from_secs(1);
/// The same while calls wait for their turn.
pub const YIELD: Duration = Duration::from_secs(5);
/// How often load figures alone are worth a write.
pub const LOAD_PERIOD: Duration = Duration::from_secs(10);

/// How much a status differs from the one that the object has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Not at all.
    None,
    /// In load figures alone.
    Load,
    /// In a step on the way to something else.
    Passing,
    /// In what somebody waits for or has to know.
    News,
}

/// What becomes of a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: the object says it already.
    Same,
    /// It is looked at again after this long.
    Later(Duration),
    /// It has to be written.
    Write,
}

/// When a status was written, and since when it is out of date.
#[derive(Clone, Copy, Debug, Default)]
struct Pace {
    written: Option<Instant>,
    outdated: Option<Instant>,
}

/// The pace of every object's status, by UID. Losing it, as a restart does, costs
/// at most one early write.
#[derive(Debug, Default)]
pub struct Paces {
    all: Mutex<HashMap<String, Pace>>,
}

impl Paces {
    /// Whether a status that differs so much is written now; `busy` says that calls wait.
    pub fn judge(&self, uid: &str, change: Change, busy: bool, now: Instant) -> Verdict {
        let mut all = self.lock();
        if change == Change::None {
            if let Some(pace) = all.get_mut(uid) {
                pace.outdated = None;
            }
            return Verdict::Same;
        }
        let pace = all.entry(uid.to_owned()).or_default();
        let outdated = *pace.outdated.get_or_insert(now);
        let rest = match change {
            Change::None | Change::News => Duration::ZERO,
            // It is looked at again before that: the rush may be over.
            Change::Passing if busy => rest(YIELD, outdated, now).min(SETTLE),
            Change::Passing => rest(SETTLE, outdated, now),
            Change::Load => pace
                .written
                .map_or(Duration::ZERO, |written| rest(LOAD_PERIOD, written, now)),
        };
        if rest.is_zero() {
            Verdict::Write
        } else {
            Verdict::Later(rest)
        }
    }

    /// The status was written.
    pub fn wrote(&self, uid: &str, now: Instant) {
        let mut all = self.lock();
        // Whatever was put off is looked at again within a period, unless its object is gone.
        all.retain(|_, pace| {
            let last = pace.written.max(pace.outdated);
            last.is_some_and(|last| now.saturating_duration_since(last) < 2 * LOAD_PERIOD)
        });
        let pace = Pace {
            written: Some(now),
            outdated: None,
        };
        all.insert(uid.to_owned(), pace);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Pace>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn rest(period: Duration, since: Instant, now: Instant) -> Duration {
    period.saturating_sub(now.saturating_duration_since(since))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_is_written_at_once_and_what_passes_gathers_for_a_moment() {
        let paces = Paces::default();
        let start = shell::clock::now();
        assert_eq!(
            paces.judge("a", Change::Passing, false, start),
            Verdict::Later(SETTLE)
        );
        let soon = start + SETTLE / 4;
        assert_eq!(
            paces.judge("a", Change::Passing, false, soon),
            Verdict::Later(SETTLE * 3 / 4),
            "further steps do not put it off"
        );
        assert_eq!(paces.judge("a", Change::News, false, soon), Verdict::Write);
        let late = start + SETTLE;
        assert_eq!(
            paces.judge("a", Change::Passing, false, late),
            Verdict::Write
        );
    }

    #[test]
    fn what_passes_gives_way_while_calls_wait_but_not_for_ever() {
        let paces = Paces::default();
        let start = shell::clock::now();
        let later = Verdict::Later(SETTLE);
        assert_eq!(paces.judge("a", Change::Passing, true, start), later);
        let soon = start + 2 * SETTLE;
        assert_eq!(paces.judge("a", Change::Passing, true, soon), later);
        assert_eq!(paces.judge("b", Change::News, true, soon), Verdict::Write);
        let late = start + YIELD;
        assert_eq!(
            paces.judge("a", Change::Passing, true, late),
            Verdict::Write
        );
        let calm = paces.judge("a", Change::Passing, false, soon);
        assert_eq!(calm, Verdict::Write);
    }

    #[test]
    fn a_change_that_is_taken_back_in_time_was_none() {
        let paces = Paces::default();
        let start = shell::clock::now();
        paces.judge("a", Change::Passing, false, start);
        assert_eq!(paces.judge("a", Change::None, false, start), Verdict::Same);
        let late = start + 2 * SETTLE;
        assert_eq!(
            paces.judge("a", Change::Passing, false, late),
            Verdict::Later(SETTLE)
        );
    }

    #[test]
    fn load_alone_is_written_now_and_then() {
        let paces = Paces::default();
        let start = shell::clock::now();
        assert_eq!(paces.judge("a", Change::Load, false, start), Verdict::Write);
        paces.wrote("a", start);
        let later = start + Duration::from_secs(4);
        assert_eq!(
            paces.judge("a", Change::Load, false, later),
            Verdict::Later(Duration::from_secs(6))
        );
        assert_eq!(paces.judge("a", Change::News, false, later), Verdict::Write);
    }

    #[test]
    fn objects_that_are_gone_are_forgotten() {
        let paces = Paces::default();
        let start = shell::clock::now();
        paces.wrote("gone", start);
        paces.wrote("here", start + 2 * LOAD_PERIOD);
        assert_eq!(paces.lock().len(), 1);
    }
}
