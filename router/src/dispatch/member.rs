//! A worker as a pool sees it: what it has of ours, what it reports, how it does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use protocol::load::{LoadReport, Phase};

use crate::dispatch::estimate::{Own, Reported};
use crate::dispatch::health::{Health, Standing};
use crate::dispatch::pick::Preference;
use crate::dispatch::reservation::Claim;
use crate::metrics::meter::{PickReason, Reason as _};
use crate::upstream::link::Links;

/// A Lease not renewed for this long is stale: `leaseDurationSeconds` of workers.
const LEASE: Duration = Duration::from_secs(crds::name::LEASE_DURATION_SECONDS as u64);
/// First bytes that are owed for longer than this, and than
/// [`OWED_RATIO`] usual waits, make a worker suspect.
const OWED: Duration = Duration::from_secs(2);
const OWED_RATIO: f64 = 4.0;
/// A report this much older is replaced by any.
const RESET: Duration = Duration::from_secs(10);
/// The smallest share of a worker that just came.
const MIN_SHARE: f64 = 0.1;

/// One worker: its identity, the way to it, and what its streams note without
/// taking the pool's lock.
#[derive(Debug)]
pub(crate) struct Worker {
    /// Identity: the Pod's UID, or the address in a fixed table.
    pub(crate) uid: String,
    /// For people: the Pod's name, or the address.
    pub(crate) name: String,
    /// The way to it.
    pub(crate) links: Arc<Links>,
    born: Instant,
    heard: AtomicU64,
    down: AtomicBool,
    known: AtomicBool,
}

/// How much longer than its slots a worker's queue may be, as a divisor of the
/// slots: enough that a freed slot finds work at once.
const HEADROOM: u32 = 4;

/// How often a worker was picked, by [`PickReason`].
pub(crate) type Picks = [u64; PickReason::ALL.len()];

/// A worker in a pool.
#[derive(Debug)]
pub(crate) struct Member {
    /// The worker.
    pub(crate) worker: Arc<Worker>,
    /// What it has of ours.
    pub(crate) own: Own,
    /// Of these, the requests whose answers stream and have no first byte yet.
    pub(crate) unanswered: u32,
    /// Since when there is at least one such.
    pub(crate) unanswered_since: Option<Instant>,
    /// Its last report.
    pub(crate) reported: Option<Reported>,
    /// How it does.
    pub(crate) health: Health,
    /// When it came.
    pub(crate) joined: Instant,
    /// When its Lease was seen to be renewed; `None` where there are no Leases.
    pub(crate) renewed: Option<Instant>,
    /// Whether the table offers it: ready and not terminating.
    pub(crate) offered: bool,
    /// How often it was picked.
    pub(crate) picks: Picks,
    /// The last failure, for people.
    pub(crate) last_error: Option<(Instant, String)>,
}

impl Worker {
    /// A worker reached through `links`.
    pub(crate) fn new(uid: String, name: String, links: Links, now: Instant) -> Self {
        Self {
            uid,
            name,
            links: Arc::new(links),
            born: now,
            heard: AtomicU64::new(0),
            down: AtomicBool::new(false),
            known: AtomicBool::new(false),
        }
    }

    /// Bytes came from the worker.
    pub(crate) fn heard(&self, now: Instant) {
        let millis = now.saturating_duration_since(self.born).as_millis();
        self.heard
            .store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn last_heard(&self) -> Instant {
        self.born + Duration::from_millis(self.heard.load(Ordering::Relaxed))
    }

    /// Whether probes find nobody there: requests without a first byte leave.
    pub(crate) fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    /// Notes that it answered a probe, whatever it said, and tells whether that was the first time.
    pub(crate) fn answered_probe(&self) -> bool {
        !self.known.swap(true, Ordering::Relaxed)
    }

    /// Notes what the probes found.
    pub(crate) fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::Relaxed);
    }
}

impl Member {
    /// A worker that comes in.
    pub(crate) fn new(worker: Arc<Worker>, now: Instant) -> Self {
        Self {
            worker,
            own: Own::default(),
            unanswered: 0,
            unanswered_since: None,
            reported: None,
            health: Health::default(),
            joined: now,
            renewed: None,
            offered: true,
            picks: Picks::default(),
            last_error: None,
        }
    }

    /// Whether it takes requests at all.
    pub(crate) fn is_open(&self) -> bool {
        let serves = |reported: &Reported| reported.load.phase == Phase::Serving;
        self.offered && self.reported.as_ref().is_none_or(serves)
    }

    /// Whether its Lease went stale.
    pub(crate) fn is_stale(&self, now: Instant) -> bool {
        self.renewed
            .is_some_and(|at| now.saturating_duration_since(at) > LEASE)
    }

    /// How much it is trusted. `usual_wait` is the pool's mean time to the first byte.
    pub(crate) fn preference(
        &self,
        usual_wait: Duration,
        judge_leases: bool,
        now: Instant,
    ) -> Preference {
        let stale = judge_leases && self.is_stale(now);
        match self.health.standing(now) {
            Standing::Down => Preference::Down,
            Standing::Ejected => Preference::Ejected,
            _ if self.owes_too_long(usual_wait, now) => Preference::Suspect,
            _ if stale => Preference::Stale,
            Standing::In | Standing::Trial => Preference::Good,
        }
    }

    /// A hung worker is noticed by its missing first bytes long before any
    /// timeout; one that still sends to others is only slow.
    fn owes_too_long(&self, usual_wait: Duration, now: Instant) -> bool {
        let Some(since) = self.unanswered_since else {
            return false;
        };
        let quiet_since = since.max(self.worker.last_heard());
        let limit = OWED.max(usual_wait.mul_f64(OWED_RATIO));
        self.unanswered > 0 && now.saturating_duration_since(quiet_since) > limit
    }

    /// A request goes there. If its answer comes all at once, its first byte may well take
    /// as long as the work.
    pub(crate) fn sent(&mut self, claim: Claim, reason: PickReason, now: Instant) {
        self.own.count += 1;
        self.own.weight += claim.weight;
        self.picks[reason.place()] += 1;
        if claim.streams {
            self.unanswered += 1;
            self.unanswered_since.get_or_insert(now);
        }
        if self.health.standing(now) == Standing::Trial {
            self.health.try_out();
        }
    }

    /// A request whose answer streams got its first byte.
    pub(crate) fn answer_came(&mut self, now: Instant) {
        self.answer_given_up();
        if self.unanswered > 0 {
            self.unanswered_since = Some(now);
        }
    }

    /// A request whose answer streams will never get its first byte.
    pub(crate) fn answer_given_up(&mut self) {
        self.unanswered = self.unanswered.saturating_sub(1);
        if self.unanswered == 0 {
            self.unanswered_since = None;
        }
    }

    /// Takes a report that was seen at `taken`, unless a newer one is known.
    /// (If the worker's clock was set back, an old one is replaced all the same.)
    pub(crate) fn take_report(&mut self, load: LoadReport, own_then: Own, taken: Instant) {
        let replaces = |known: &Reported| {
            load.captured_at_ms > known.load.captured_at_ms || known.age(taken) > RESET
        };
        if self.reported.as_ref().is_none_or(replaces) {
            self.reported = Some(Reported {
                load,
                taken,
                own_then,
            });
        }
    }

    /// Slots, by its own word or by default.
    pub(crate) fn slots(&self, default: u32) -> u32 {
        match &self.reported {
            Some(reported) if reported.load.slots > 0 => reported.load.slots,
            _ => default.max(1),
        }
    }

    /// Requests that it may have at once: its slots, and a few more, so that a freed slot
    /// finds work at once. One that was not heard of yet gets a single one: those who wait
    /// for it, as for the first worker of a model that slept, would all reach it together,
    /// in no order and without a thought for the next worker.
    pub(crate) fn room(&self, default_slots: u32) -> u64 {
        if !self.is_heard_of() {
            return 1;
        }
        let slots = self.slots(default_slots);
        u64::from(slots) + u64::from((slots / HEADROOM).max(1))
    }

    /// Whether it reported its load, or answered without a report.
    pub(crate) fn is_heard_of(&self) -> bool {
        self.reported.is_some() || self.worker.known.load(Ordering::Relaxed)
    }

    /// How much of its full share it gets: rising while its caches are cold.
    pub(crate) fn warmth(&self, warm_up: Duration, now: Instant) -> f64 {
        let age = now.saturating_duration_since(self.joined);
        (age.as_secs_f64() / warm_up.as_secs_f64()).clamp(MIN_SHARE, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::estimate::UNIT;
    use crate::dispatch::pool::tests::{load, worker};

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_share_of_a_new_worker_rises_from_a_tenth_to_one() {
        let start = shell::clock::now();
        let member = Member::new(worker(1, start), start);
        for (seconds, share) in [(0, 0.1), (1, 0.1), (5, 0.5), (10, 1.0), (99, 1.0)] {
            let warmth = member.warmth(10 * SECOND, start + seconds * SECOND);
            assert!((warmth - share).abs() < 0.001, "{warmth} after {seconds} s");
        }
    }

    #[test]
    fn a_worker_that_owes_a_first_byte_for_longer_than_is_usual_is_suspect() {
        let start = shell::clock::now();
        let mut member = Member::new(worker(1, start), start);
        let is_suspect = |member: &Member, usual_wait: u32, at: u32| {
            let preference = member.preference(usual_wait * SECOND, false, start + at * SECOND);
            preference == Preference::Suspect
        };
        assert!(!is_suspect(&member, 0, 99));
        let request = |streams| Claim {
            weight: UNIT,
            streams,
        };
        member.sent(request(false), PickReason::Own, start);
        assert!(!is_suspect(&member, 0, 99), "its answer comes all at once");
        member.sent(request(true), PickReason::Own, start);
        assert!(!is_suspect(&member, 0, 2));
        assert!(is_suspect(&member, 0, 3));
        assert!(!is_suspect(&member, 1, 4));
        assert!(is_suspect(&member, 1, 5));
        // One that sends to others is only slow.
        member.worker.heard(start + 3 * SECOND);
        assert!(!is_suspect(&member, 0, 5));
        assert!(is_suspect(&member, 0, 6));
        member.answer_came(start + 6 * SECOND);
        assert!(!is_suspect(&member, 0, 99));
    }

    #[test]
    fn a_worker_that_was_not_heard_of_yet_gets_one_request() {
        let start = shell::clock::now();
        let mut member = Member::new(worker(1, start), start);
        assert_eq!(member.room(64), 1);
        assert!(member.worker.answered_probe());
        assert_eq!(member.room(64), 64 + 64 / u64::from(HEADROOM));
        member.take_report(load(0, 1, 7), Own::default(), start);
        assert_eq!(member.room(64), 2);
    }

    #[test]
    fn the_newest_report_counts_by_the_workers_own_clock() {
        let start = shell::clock::now();
        let mut member = Member::new(worker(1, start), start);
        let mut known_after = |running: u32, captured_at: u64, seconds: u32| {
            let report = load(running, 4, captured_at);
            member.take_report(report, Own::default(), start + seconds * SECOND);
            member.reported.as_ref().unwrap().load.running
        };
        assert_eq!(known_after(1, 1000, 0), 1);
        assert_eq!(known_after(2, 999, 1), 1, "an old one came late");
        assert_eq!(known_after(3, 1001, 1), 3);
        // Its clock was set back.
        assert_eq!(known_after(4, 7, 2), 3);
        assert_eq!(known_after(5, 8, 12), 5);
    }
}
