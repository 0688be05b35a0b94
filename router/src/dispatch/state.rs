//! What a pool's lock guards, as a plain struct: who is a member, who waits, and
//! the step that picks a worker and counts the request there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::SeedableRng as _;
use rand::rngs::SmallRng;

use crate::args::Dispatch;
use crate::dispatch::budget::RetryBudget;
use crate::dispatch::estimate::{self, Own, Queue, Reported};
use crate::dispatch::health::{self, Failure, Standing};
use crate::dispatch::mean::Mean;
use crate::dispatch::member::{Member, Picks, Worker};
use crate::dispatch::pick::{self, Candidate, Preference};
use crate::dispatch::pool::Rules;
use crate::dispatch::replicas::Replicas;
use crate::dispatch::reservation::Claim;
use crate::dispatch::room::{Placing, Room, Waiter};
use crate::dispatch::weight::UsualSize;
use crate::metrics::meter::PickReason;

/// Reports older than this, and than three polls, are not trusted.
const FRESH: Duration = Duration::from_secs(3);
/// What a pool's lock guards.
#[derive(Debug)]
pub(super) struct State {
    pub(super) members: Vec<Member>,
    pub(super) room: Room,
    /// Of the bodies of those that wait.
    pub(super) waiting_bytes: u64,
    pub(super) usual: UsualSize,
    pub(super) retries: RetryBudget,
    pub(super) replicas: Replicas,
    pub(super) dispatch: Option<Dispatch>,
    /// Whether the model is gone.
    pub(super) closed: bool,
    pub(super) seconds_to_first_byte: f64,
    pub(super) seconds_in_slot: Mean,
    scratch: Vec<Candidate>,
    rng: SmallRng,
}

/// The outcome of a search for a worker.
#[derive(Debug)]
pub(super) enum Found {
    /// This one; the request is counted there.
    Worker(Arc<Worker>),
    /// Every worker was tried.
    AllTried,
    /// All are full.
    Full,
    /// There is no worker.
    Nobody,
}

/// What an operator of the router wants to know of one worker.
#[derive(Clone, Debug)]
pub(crate) struct WorkerView {
    /// The worker.
    pub(crate) worker: Arc<Worker>,
    /// How much it is trusted; `None` when it takes no new requests.
    pub(crate) preference: Option<Preference>,
    /// Whether it rested and is to show with one request that it is well.
    pub(crate) on_trial: bool,
    /// Its estimated queue.
    pub(crate) queue: Queue,
    /// What it has of ours.
    pub(crate) own: Own,
    /// Its last report.
    pub(crate) reported: Option<Reported>,
    /// Slots.
    pub(crate) slots: u32,
    /// How often it was picked.
    pub(crate) picks: Picks,
    /// Its last failure.
    pub(crate) last_error: Option<(Instant, String)>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            members: Vec::new(),
            room: Room::default(),
            waiting_bytes: 0,
            usual: UsualSize::default(),
            retries: RetryBudget::default(),
            replicas: Replicas::default(),
            dispatch: None,
            closed: false,
            seconds_to_first_byte: 0.0,
            seconds_in_slot: Mean::default(),
            scratch: Vec::new(),
            rng: SmallRng::from_rng(&mut rand::rng()),
        }
    }
}

impl State {
    pub(super) fn member(&mut self, worker: &Arc<Worker>) -> Option<&mut Member> {
        self.members
            .iter_mut()
            .find(|member| Arc::ptr_eq(&member.worker, worker))
    }

    /// Picks a worker and counts a request with this claim there.
    pub(super) fn reserve(
        &mut self,
        rules: &Rules,
        tried: &[Arc<Worker>],
        claim: Claim,
        now: Instant,
    ) -> Found {
        let mut candidates = std::mem::take(&mut self.scratch);
        let reports_count = self.candidates(rules, now, &mut candidates);
        let nobody = candidates.is_empty();
        let is_tried = |index: usize| {
            tried
                .iter()
                .any(|worker| Arc::ptr_eq(worker, &self.members[index].worker))
        };
        if !tried.is_empty() {
            candidates.retain(|candidate| !is_tried(candidate.index));
        }
        let dispatch = self.dispatch.unwrap_or(rules.dispatch);
        let picked = pick::pick(&candidates, dispatch, &mut self.rng);
        let all_tried = candidates.is_empty();
        self.scratch = candidates;
        let Some((index, preference)) = picked else {
            return match (nobody, all_tried) {
                (true, _) => Found::Nobody,
                (_, true) => Found::AllTried,
                _ => Found::Full,
            };
        };
        let member = &mut self.members[index];
        let reason = match dispatch {
            _ if member.health.standing(now) == Standing::Trial => PickReason::Trial,
            _ if !preference.is_trusted() => PickReason::LastResort,
            Dispatch::Lottery => PickReason::Lottery,
            Dispatch::ShortestQueue if reports_count => PickReason::Reported,
            Dispatch::ShortestQueue => PickReason::Own,
        };
        member.sent(claim, reason, now);
        Found::Worker(Arc::clone(&member.worker))
    }

    /// Lets those who wait try for a slot.
    pub(super) fn place_waiters(
        &mut self,
        rules: &Rules,
        now: Instant,
    ) -> Vec<(Waiter, Arc<Worker>)> {
        let mut room = std::mem::take(&mut self.room);
        let placed =
            room.place(
                |waiter| match self.reserve(rules, &waiter.tried, waiter.claim, now) {
                    Found::Worker(worker) => Placing::Placed(worker),
                    Found::AllTried => Placing::NotThisOne,
                    Found::Full | Found::Nobody => Placing::AllFull,
                },
            );
        self.room = room;
        placed
    }

    /// Ejects the worker for such failures if the pool can spare it, and says whether it did.
    /// One that rests already does so no longer for what was sent before.
    pub(super) fn eject(&mut self, worker: &Arc<Worker>, cause: Failure, now: Instant) -> bool {
        let is_it = |m: &Member| Arc::ptr_eq(&m.worker, worker);
        let standing = |m: &Member| m.health.standing(now);
        let open = self.members.iter().filter(|m| m.is_open());
        let away = open
            .clone()
            .filter(|m| !is_it(m) && matches!(standing(m), Standing::Ejected | Standing::Down));
        let spare = health::can_spare(open.count(), away.count());
        let Some(member) = self.member(worker) else {
            return false;
        };
        let ejects = spare && member.health.standing(now) != Standing::Ejected;
        if ejects {
            member.health.eject(cause, now);
            tracing::warn!(worker = worker.name, "worker ejected for a while");
        }
        ejects
    }

    /// The smallest number of 5xx in a row among the other open workers; a
    /// worker alone is compared with itself and so is never an outlier.
    pub(super) fn least_errors_besides(&self, worker: &Arc<Worker>) -> u32 {
        self.members
            .iter()
            .filter(|m| m.is_open() && !Arc::ptr_eq(&m.worker, worker))
            .map(|m| m.health.server_errors())
            .min()
            .unwrap_or(u32::MAX / 8)
    }

    /// Requests at workers.
    pub(super) fn in_flight(&self) -> u32 {
        self.members.iter().map(|member| member.own.count).sum()
    }

    /// How long a request that came now would wait for a slot. Of those in flight one ends
    /// each time that a request takes, divided by their number (Little's law).
    pub(super) fn expected_wait(&self) -> Duration {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let ahead = (self.room.len() + 1) as f64;
        let between_ends = self.seconds_in_slot.get() / f64::from(self.in_flight().max(1));
        Duration::from_secs_f64((ahead * between_ends).clamp(0.0, 3600.0))
    }

    /// What an operator of the router wants to know: what a request would be judged by
    /// that came now.
    pub(super) fn view(&self, rules: &Rules, now: Instant) -> Vec<WorkerView> {
        let mut candidates = Vec::new();
        let reports_count = self.candidates(rules, now, &mut candidates);
        let mut candidates = candidates.into_iter().peekable();
        let view = |(index, member): (usize, &Member)| {
            let candidate = candidates.next_if(|candidate| candidate.index == index);
            WorkerView {
                worker: Arc::clone(&member.worker),
                preference: candidate.map(|candidate| candidate.preference),
                on_trial: member.health.standing(now) == Standing::Trial,
                queue: candidate.map_or_else(
                    || self.queue(member, reports_count, now),
                    |candidate| candidate.queue,
                ),
                own: member.own,
                reported: member.reported.clone(),
                slots: member.slots(rules.default_slots),
                picks: member.picks,
                last_error: member.last_error.clone(),
            }
        };
        self.members.iter().enumerate().map(view).collect()
    }

    /// Who may take a request, in the order of members, and whether reports count among
    /// them.
    fn candidates(&self, rules: &Rules, now: Instant, out: &mut Vec<Candidate>) -> bool {
        out.clear();
        let usual_wait = Duration::from_secs_f64(self.seconds_to_first_byte);
        let judge_leases = self.judge_leases(now);
        for (index, member) in self.members.iter().enumerate() {
            if member.is_open() {
                let preference = member.preference(usual_wait, judge_leases, now);
                let lives = preference == Preference::Suspect && member.health.answers_probes();
                out.push(Candidate {
                    index,
                    preference,
                    beats_waiting: preference.is_trusted() || lives,
                    queue: Queue::default(),
                    score: 0.0,
                    share: 0.0,
                    has_room: false,
                });
            }
        }
        // A worker on trial that nobody would pick for its score still has to be tried.
        let trusted = |c: &Candidate| c.preference.is_trusted();
        let any_trusted = out.iter().any(trusted);
        let reports_count = out
            .iter()
            .filter(|c| trusted(c) || !any_trusted)
            .all(|c| is_fresh(&self.members[c.index], rules, now));
        for candidate in out {
            let member = &self.members[candidate.index];
            let queue = self.queue(member, reports_count, now);
            let slots = member.slots(rules.default_slots);
            let warmth = member.warmth(rules.warm_up, now);
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let queued = (queue.weight + estimate::UNIT) as f64;
            candidate.queue = queue;
            candidate.share = f64::from(slots) * warmth;
            candidate.score = queued / candidate.share;
            candidate.has_room = queue.count < member.room(rules.default_slots);
        }
        reports_count
    }

    fn queue(&self, member: &Member, reports_count: bool, now: Instant) -> Queue {
        let report = member.reported.as_ref().filter(|_| reports_count);
        estimate::queue(member.own, report, self.replicas.get(now))
    }

    /// If all Leases look stale, the API server or our clock is the suspect.
    fn judge_leases(&self, now: Instant) -> bool {
        !self.members.iter().all(|member| member.is_stale(now))
    }
}

fn is_fresh(member: &Member, rules: &Rules, now: Instant) -> bool {
    let limit = FRESH.max(rules.poll_interval * 3);
    let reported = member.reported.as_ref();
    reported.is_some_and(|reported| reported.age(now) <= limit)
}
