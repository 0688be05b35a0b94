//! What is remembered of a deployment between reconciliations. Losing it, as a
//! restart does, loses nothing but time.

use std::collections::HashMap;
use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::progress::Progress;
use super::refusal::Refusals;
use super::scale::Scaler;

/// What is remembered of one deployment.
#[derive(Debug, Default)]
pub struct Memory {
    /// The scaler's readings.
    pub scaler: Scaler,
    /// How far the rollout came.
    pub progress: Progress,
    /// Workers that were refused.
    pub refusals: Refusals,
    /// Since when no node has room for a worker, by UID.
    without_room: HashMap<String, Instant>,
    /// Ended workers that were counted as failures.
    ended: HashSet<String>,
}

impl Memory {
    /// Notes which workers find no room now, and tells for how long.
    pub fn without_room(&mut self, uid: &str, lacking: bool, now: Instant) -> Option<Duration> {
        if !lacking {
            self.without_room.remove(uid);
            return None;
        }
        let since = *self.without_room.entry(uid.to_owned()).or_insert(now);
        Some(now.saturating_duration_since(since))
    }

    /// Whether this worker's end was not counted yet.
    pub fn is_new_end(&mut self, uid: &str) -> bool {
        self.ended.insert(uid.to_owned())
    }

    /// Forgets workers that are gone.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.without_room.retain(|uid, _| keep(uid));
        self.ended.retain(|uid| keep(uid));
    }
}
