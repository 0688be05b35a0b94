//! Our own writes that the caches do not show yet. A plan made before they do
//! would count wrongly, so it is put off; Kubernetes' own controllers do the
//! same since 1.36 (KEP-5647). Each object is waited for by its UID.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::key::Key;

/// After this long the API server itself is asked: the object may have come and
/// gone between two lists.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// The same for a write whose answer was lost. It may still be on its way, so that
/// the word that it did not happen counts only after [`PATIENCE`].
pub const DOUBT: Duration = Duration::from_secs(1);

/// What must be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// The object exists, or existed.
    Created,
    /// The object is terminating or gone.
    Deleted,
}

/// A write that is not visible yet.
#[derive(Clone, Debug)]
pub struct Pending {
    /// The object written.
    pub object: Key,
    /// Its UID.
    pub uid: String,
    /// What must be seen of it.
    pub expected: Expected,
    /// When the API server is asked.
    ask: Instant,
    /// Until when a write that did not happen yet may still do so.
    until: Instant,
}

impl Pending {
    /// Whether the cache had long enough, or nobody knows that there is anything to see.
    #[must_use]
    pub fn is_overdue(&self, now: Instant) -> bool {
        now >= self.ask
    }

    /// Whether the cache has yet to show the write, by the API server's own word on
    /// the object: that it is terminating or gone, or not.
    #[must_use]
    pub fn is_to_come(&self, ending: bool, now: Instant) -> bool {
        match self.expected {
            // It came and went, and the cache may never show it.
            Expected::Created => !ending,
            // It did not happen, or a store restored from a copy has undone it.
            Expected::Deleted => ending || now < self.until,
        }
    }
}

/// Writes not visible yet, by the object whose reconciliation made them.
#[derive(Debug, Default)]
pub struct Expectations {
    pending: Mutex<HashMap<Key, Vec<Pending>>>,
}

impl Expectations {
    /// A write was answered.
    pub fn wrote(&self, parent: &Key, object: Key, uid: &str, expected: Expected, now: Instant) {
        self.expect(parent, object, uid, expected, [now + PATIENCE; 2]);
    }

    /// A write may have happened: its answer was lost.
    pub fn doubted(&self, parent: &Key, object: Key, uid: &str, expected: Expected, now: Instant) {
        let times = [now + DOUBT, now + PATIENCE];
        self.expect(parent, object, uid, expected, times);
    }

    fn expect(
        &self,
        parent: &Key,
        object: Key,
        uid: &str,
        expected: Expected,
        [ask, until]: [Instant; 2],
    ) {
        let mut all = self.lock();
        all.entry(parent.clone()).or_default().push(Pending {
            object,
            uid: uid.to_owned(),
            expected,
            ask,
            until,
        });
    }

    /// The writes of `parent` that still cannot be seen. `visible` looks into the cache.
    pub fn unseen(&self, parent: &Key, visible: impl Fn(&Pending) -> bool) -> Vec<Pending> {
        let mut all = self.lock();
        let Some(pending) = all.get_mut(parent) else {
            return Vec::new();
        };
        pending.retain(|pending| !visible(pending));
        let unseen = pending.clone();
        if unseen.is_empty() {
            all.remove(parent);
        }
        unseen
    }

    /// An object was seen, or its end was: nothing is expected of it any more.
    /// `ending` says that it is terminating or gone.
    pub fn saw(&self, parent: &Key, uid: &str, ending: bool) {
        if let Some(pending) = self.lock().get_mut(parent) {
            pending.retain(|pending| {
                pending.uid != uid || (pending.expected == Expected::Deleted && !ending)
            });
        }
    }

    /// The parent is gone.
    pub fn forget(&self, parent: &Key) {
        self.lock().remove(parent);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Vec<Pending>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The versions that our own statuses gave to objects, by UID, until the cache
/// shows them. A status computed from an older one would be written, and its
/// Events told, a second time.
#[derive(Debug, Default)]
pub struct Versions {
    written: Mutex<HashMap<String, (u64, Instant)>>,
}

impl Versions {
    /// A status was written and the object has this version now.
    pub fn wrote(&self, uid: &str, version: Option<&str>, now: Instant) {
        let Some(version) = version.and_then(number) else {
            return;
        };
        let mut all = self.lock();
        // Nobody asks any more for those whose objects are gone.
        all.retain(|_, (_, since)| now.saturating_duration_since(*since) < PATIENCE);
        all.insert(uid.to_owned(), (version, now));
    }

    /// Whether a cached object of this version is older than our own last status.
    pub fn is_behind(&self, uid: &str, version: Option<&str>, now: Instant) -> bool {
        let mut all = self.lock();
        let Some((written, since)) = all.get(uid) else {
            return false;
        };
        // A store that was restored from a copy counts from an earlier version on.
        let overdue = now.saturating_duration_since(*since) >= PATIENCE;
        let behind = !overdue && version.and_then(number).is_some_and(|seen| seen < *written);
        if !behind {
            all.remove(uid);
        }
        behind
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, (u64, Instant)>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Versions of one kind can be compared as numbers (KEP-5504).
fn number(version: &str) -> Option<u64> {
    version.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_that_lacks_our_last_status_is_behind_until_it_shows_it_or_has_had_its_time() {
        let versions = Versions::default();
        let now = shell::clock::now();
        assert!(!versions.is_behind("u", Some("7"), now));
        versions.wrote("u", Some("9"), now);
        assert!(versions.is_behind("u", Some("8"), now));
        assert!(!versions.is_behind("u", Some("9"), now));
        assert!(!versions.is_behind("u", Some("8"), now), "it was seen once");
        versions.wrote("u", Some("10"), now);
        assert!(!versions.is_behind("u", Some("8"), now + PATIENCE));
    }

    #[test]
    fn a_write_holds_plans_back_until_it_was_seen() {
        let expectations = Expectations::default();
        let (parent, child) = (Key::new("ns", "llava"), Key::new("ns", "llava-abc-0"));
        let now = shell::clock::now();
        expectations.wrote(&parent, child.clone(), "1", Expected::Created, now);
        assert_eq!(expectations.unseen(&parent, |_| false).len(), 1);
        expectations.saw(&parent, "2", false);
        assert_eq!(expectations.unseen(&parent, |_| false).len(), 1);
        expectations.saw(&parent, "1", false);
        assert!(expectations.unseen(&parent, |_| false).is_empty());
    }

    #[test]
    fn a_deletion_is_seen_only_when_the_object_ends() {
        let expectations = Expectations::default();
        let (parent, child) = (Key::new("ns", "llava"), Key::new("ns", "llava-abc-0"));
        let now = shell::clock::now();
        expectations.wrote(&parent, child, "1", Expected::Deleted, now);
        expectations.saw(&parent, "1", false);
        let unseen = expectations.unseen(&parent, |_| false);
        assert!(!unseen[0].is_overdue(now));
        assert!(unseen[0].is_overdue(now + PATIENCE));
        expectations.saw(&parent, "1", true);
        assert!(expectations.unseen(&parent, |_| false).is_empty());
    }

    #[test]
    fn a_deletion_without_an_answer_is_asked_for_soon_and_given_up_late() {
        let expectations = Expectations::default();
        let (parent, child) = (Key::new("ns", "llava"), Key::new("ns", "llava-abc-0"));
        let now = shell::clock::now();
        expectations.doubted(&parent, child, "1", Expected::Deleted, now);
        let unseen = expectations.unseen(&parent, |_| false);
        assert!(!unseen[0].is_overdue(now), "it may be on its way");
        let soon = now + DOUBT;
        assert!(unseen[0].is_overdue(soon));
        assert!(unseen[0].is_to_come(true, soon));
        assert!(unseen[0].is_to_come(false, soon), "it may arrive still");
        let late = now + PATIENCE;
        assert!(unseen[0].is_to_come(true, late), "the cache is behind");
        assert!(!unseen[0].is_to_come(false, late), "it is planned anew");
    }
}
