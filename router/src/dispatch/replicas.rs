//! How many router replicas there are, smoothed: one that just left still has
//! requests with the workers, so the larger of the last two numbers counts for
//! a while.

use std::time::{Duration, Instant};

const LINGER: Duration = Duration::from_secs(10);

/// The number of router replicas.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Replicas {
    now: u32,
    before: u32,
    changed: Option<Instant>,
}

impl Default for Replicas {
    fn default() -> Self {
        Self {
            now: 1,
            before: 1,
            changed: None,
        }
    }
}

impl Replicas {
    /// That many are seen.
    pub(crate) fn set(&mut self, count: u32, now: Instant) {
        let count = count.max(1);
        if count != self.now {
            self.before = self.now;
            self.now = count;
            self.changed = Some(now);
        }
    }

    /// That many count.
    pub(crate) fn get(&self, now: Instant) -> u32 {
        match self.changed {
            Some(at) if now.saturating_duration_since(at) < LINGER => self.now.max(self.before),
            _ => self.now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_that_left_counts_for_a_while() {
        let now = shell::clock::now();
        let mut replicas = Replicas::default();
        replicas.set(4, now);
        assert_eq!(replicas.get(now), 4);
        replicas.set(2, now);
        assert_eq!(replicas.get(now), 4);
        assert_eq!(replicas.get(now + LINGER), 2);
        replicas.set(0, now);
        assert_eq!(replicas.get(now + LINGER), 1);
    }
}
