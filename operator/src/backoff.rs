//! How long to wait after failures. kube's error policy has no memory, so the
//! counts live here.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A doubling delay with a ceiling, forgotten after a quiet time.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// The delay after the first failure.
    pub first: Duration,
    /// What it doubles from at the second.
    pub base: Duration,
    /// Its ceiling.
    pub most: Duration,
    /// After this long without a failure the count starts anew.
    pub forget: Duration,
}

/// For reconciliations that ended with an error.
pub const RETRY: Schedule = Schedule {
    first: Duration::from_millis(500),
    base: Duration::from_secs(1),
    most: Duration::from_secs(60),
    forget: Duration::from_secs(600),
};

/// For workers whose Pod ended for good: the first is replaced at once, as an
/// eviction is nobody's fault; then as kubelet restarts a crashing container.
pub const REPLACE: Schedule = Schedule {
    first: Duration::ZERO,
    base: Duration::from_secs(10),
    most: Duration::from_secs(300),
    forget: Duration::from_secs(600),
};

impl Schedule {
    /// The delay after the given number of failures in a row.
    #[must_use]
    pub fn delay(&self, failures: u32) -> Duration {
        match failures {
            0 => Duration::ZERO,
            1 => self.first,
            more => self
                .base
                .saturating_mul(1_u32.checked_shl(more - 2).unwrap_or(u32::MAX))
                .min(self.most),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Failures {
    count: u32,
    last: Instant,
}

/// Failures by key.
#[derive(Debug)]
pub struct Backoff<K> {
    schedule: Schedule,
    failures: Mutex<HashMap<K, Failures>>,
}

impl<K: Eq + Hash + Clone> Backoff<K> {
    /// No failures yet.
    #[must_use]
    pub fn new(schedule: Schedule) -> Self {
        Self {
            schedule,
            failures: Mutex::default(),
        }
    }

    /// One more failure; returns the delay.
    pub fn failed(&self, key: &K, now: Instant) -> Duration {
        let mut all = self.lock();
        let entry = all.entry(key.clone()).or_insert(Failures {
            count: 0,
            last: now,
        });
        if now.saturating_duration_since(entry.last) >= self.schedule.forget {
            entry.count = 0;
        }
        entry.count = entry.count.saturating_add(1);
        entry.last = now;
        self.schedule.delay(entry.count)
    }

    /// How long to wait still.
    pub fn remaining(&self, key: &K, now: Instant) -> Duration {
        self.lock().get(key).map_or(Duration::ZERO, |failures| {
            let since = now.saturating_duration_since(failures.last);
            self.schedule.delay(failures.count).saturating_sub(since)
        })
    }

    /// It went well, or the object is gone.
    pub fn forget(&self, key: &K) {
        self.lock().remove(key);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<K, Failures>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ended_worker_is_replaced_at_once_the_first_time_and_ever_slower_then() {
        let backoff = Backoff::new(REPLACE);
        let start = shell::clock::now();
        let delays: Vec<_> = (0..8)
            .map(|_| backoff.failed(&"llava", start).as_secs())
            .collect();
        assert_eq!(delays, [0, 10, 20, 40, 80, 160, 300, 300]);
        let quiet = start + Duration::from_secs(600);
        assert_eq!(backoff.failed(&"llava", quiet).as_secs(), 0);
    }

    #[test]
    fn what_remains_shrinks_with_time() {
        let backoff = Backoff::new(RETRY);
        let start = shell::clock::now();
        backoff.failed(&1, start);
        backoff.failed(&1, start);
        let later = start + Duration::from_millis(400);
        assert_eq!(backoff.remaining(&1, later), Duration::from_millis(600));
        backoff.forget(&1);
        assert_eq!(backoff.remaining(&1, later), Duration::ZERO);
    }
}
