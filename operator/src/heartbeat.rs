//! The workers' Leases as heartbeats. Age is counted from when this process saw
//! `renewTime` change, on its own monotonic clock: a worker whose clock is wrong
//! by hours beats as well as any other.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crds::name::{LEASE_DURATION_SECONDS, annotation};
use crds::worker::Heartbeat;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::ResourceExt;
use protocol::load::LoadReport;

use crate::key::Key;

const LIFETIME: Duration = Duration::from_secs(LEASE_DURATION_SECONDS.unsigned_abs() as u64);

/// The last that was heard of one worker.
#[derive(Clone, Debug)]
pub struct Beat {
    /// UID of the Pod that renews the Lease.
    pub holder: String,
    /// The renewal as the worker wrote it; shown, never compared with a clock.
    pub renewed: MicroTime,
    /// What it said of its load.
    pub report: Option<LoadReport>,
    seen: Instant,
    /// Whether a renewal happened before our eyes. Before that nothing is known.
    witnessed: bool,
    stale: bool,
}

impl Beat {
    /// Whether the Lease is renewed; `None` while too little was seen to say.
    #[must_use]
    pub fn heartbeat(&self) -> Option<Heartbeat> {
        match (self.stale, self.witnessed) {
            (true, _) => Some(Heartbeat::Stale),
            (false, true) => Some(Heartbeat::Fresh),
            (false, false) => None,
        }
    }
}

/// What a renewal means for those who watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing that anybody acts on.
    None,
    /// Load, phase, holder or freshness differ.
    Some,
}

/// All workers' heartbeats, fed by the watch of Leases.
#[derive(Debug, Default)]
pub struct Heartbeats {
    beats: HashMap<Key, Beat>,
}

impl Heartbeats {
    /// A Lease was seen.
    pub fn apply(&mut self, lease: &Lease, now: Instant) -> Change {
        let key = Key::of(lease);
        let spec = lease.spec.as_ref();
        let (Some(holder), Some(renewed)) = (
            spec.and_then(|spec| spec.holder_identity.clone()),
            spec.and_then(|spec| spec.renew_time.clone()),
        ) else {
            return Change::None;
        };
        let report = lease
            .annotations()
            .get(annotation::LOAD)
            .and_then(|text| serde_json::from_str::<LoadReport>(text).ok());
        let before = self.beats.get(&key);
        let same_holder = before.is_some_and(|before| before.holder == holder);
        let renewal = before.is_some_and(|before| before.renewed != renewed);
        let beat = Beat {
            seen: match before {
                Some(before) if !renewal => before.seen,
                _ => now,
            },
            witnessed: renewal || (same_holder && before.is_some_and(|before| before.witnessed)),
            stale: !renewal && before.is_some_and(|before| before.stale),
            holder,
            renewed,
            report,
        };
        let change = match before {
            Some(before)
                if same_holder
                    && before.heartbeat() == beat.heartbeat()
                    && same_load(before.report.as_ref(), beat.report.as_ref()) =>
            {
                Change::None
            }
            _ => Change::Some,
        };
        self.beats.insert(key, beat);
        change
    }

    /// A Lease is gone.
    pub fn delete(&mut self, key: &Key) {
        self.beats.remove(key);
    }

    /// Forgets what a new list does not hold.
    pub fn retain(&mut self, keep: impl Fn(&Key) -> bool) {
        self.beats.retain(|key, _| keep(key));
    }

    /// Marks what was silent for too long; returns what turned stale just now.
    pub fn sweep(&mut self, now: Instant) -> Vec<Key> {
        let silent =
            |beat: &Beat| !beat.stale && now.saturating_duration_since(beat.seen) >= LIFETIME;
        let mut turned = Vec::new();
        for (key, beat) in self.beats.iter_mut().filter(|(_, beat)| silent(beat)) {
            beat.stale = true;
            turned.push(key.clone());
        }
        turned
    }

    /// What was heard of the worker whose Pod has this UID.
    #[must_use]
    pub fn get(&self, key: &Key, pod_uid: &str) -> Option<&Beat> {
        self.beats.get(key).filter(|beat| beat.holder == pod_uid)
    }
}

/// Equal but for the time of capture.
fn same_load(one: Option<&LoadReport>, two: Option<&LoadReport>) -> bool {
    match (one, two) {
        (Some(one), Some(two)) => {
            let figures = |report: &LoadReport| {
                (
                    report.phase,
                    report.running,
                    report.waiting,
                    report.slots,
                    report.load_seconds,
                )
            };
            figures(one) == figures(two)
        }
        (None, None) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::jiff::Timestamp;
    use serde_json::json;

    use super::*;

    fn lease(renewed_at: i64, running: u32) -> Lease {
        let report = LoadReport {
            running,
            captured_at_ms: renewed_at.unsigned_abs() * 1000,
            ..LoadReport::default()
        };
        serde_json::from_value(json!({
            "metadata": {
                "namespace": "ns", "name": "llava-abc-0",
                "annotations": {annotation::LOAD: serde_json::to_string(&report).unwrap()},
            },
            "spec": {"holderIdentity": "uid", "renewTime": MicroTime(Timestamp::from_second(renewed_at).unwrap())},
        }))
        .unwrap()
    }

    fn state(beats: &Heartbeats) -> Option<Heartbeat> {
        beats
            .get(&Key::new("ns", "llava-abc-0"), "uid")
            .unwrap()
            .heartbeat()
    }

    #[test]
    fn freshness_follows_our_clock_and_never_the_workers() {
        let mut beats = Heartbeats::default();
        let start = shell::clock::now();
        beats.apply(&lease(1, 0), start);
        assert_eq!(state(&beats), None, "one look says nothing about renewal");
        // The worker's clock is decades behind and runs backwards.
        beats.apply(&lease(0, 0), start + Duration::from_secs(5));
        assert_eq!(state(&beats), Some(Heartbeat::Fresh));
        assert!(beats.sweep(start + Duration::from_secs(19)).is_empty());
        assert_eq!(beats.sweep(start + Duration::from_secs(20)).len(), 1);
        assert_eq!(state(&beats), Some(Heartbeat::Stale));
        assert_eq!(
            beats.apply(&lease(7, 0), start + Duration::from_secs(60)),
            Change::Some
        );
        assert_eq!(state(&beats), Some(Heartbeat::Fresh));
    }

    #[test]
    fn a_renewal_with_the_same_load_wakes_nobody() {
        let mut beats = Heartbeats::default();
        let now = shell::clock::now();
        beats.apply(&lease(1, 3), now);
        beats.apply(&lease(2, 3), now);
        assert_eq!(beats.apply(&lease(3, 3), now), Change::None);
        assert_eq!(beats.apply(&lease(4, 2), now), Change::Some);
    }

    #[test]
    fn a_beat_of_an_earlier_pod_is_not_taken_for_this_ones() {
        let mut beats = Heartbeats::default();
        beats.apply(&lease(1, 3), shell::clock::now());
        assert!(
            beats
                .get(&Key::new("ns", "llava-abc-0"), "another")
                .is_none()
        );
    }
}
