//! The workers of one model and the requests that wait for them, under one lock:
//! picking a worker and reserving its slot are one step, so that two requests
//! never see the same free slot.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use protocol::load::{Demand, LoadReport};

use crate::args::Dispatch;
use crate::dispatch::estimate::Own;
use crate::dispatch::health::{Failure, Standing};
use crate::dispatch::member::{Member, Worker};
use crate::dispatch::reservation::{Answered, Claim, Ended, Verdict};
use crate::dispatch::state::{State, WorkerView};
use crate::metrics::Meter;

/// The weight of the newest figure in running means.
const GAIN: f64 = 0.05;

/// What all pools of a router have in common.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// How to choose.
    pub(crate) dispatch: Dispatch,
    /// Slots of a worker that does not say.
    pub(crate) default_slots: u32,
    /// Requests that may wait for a slot.
    pub(crate) max_queued: usize,
    /// Requests that may wait for a first worker.
    pub(crate) max_held: usize,
    /// Bytes of the bodies of both.
    pub(crate) max_waiting_bytes: u64,
    /// How long a worker warms up.
    pub(crate) warm_up: Duration,
    /// How often reports are asked for.
    pub(crate) poll_interval: Duration,
}

/// The workers of one model.
#[derive(Debug)]
pub(crate) struct Pool {
    /// `namespace/name` of the LlavaDeployment, or the model in a fixed table.
    pub(crate) key: String,
    /// Counts and times.
    pub(crate) meter: Meter,
    pub(super) rules: Rules,
    pub(super) held: Arc<tokio::sync::Notify>,
    state: Mutex<State>,
}

impl Pool {
    /// An empty pool. `held` is notified when the first request is held for want
    /// of any worker.
    pub(crate) fn new(key: String, rules: Rules, held: Arc<tokio::sync::Notify>) -> Arc<Self> {
        Arc::new(Self {
            key,
            meter: Meter::default(),
            rules,
            held,
            state: Mutex::default(),
        })
    }

    /// Starts a retry, if the budget has room.
    pub(crate) fn try_retry(&self) -> bool {
        let state = &mut *self.lock();
        let active = state.in_flight();
        state.retries.try_start(active)
    }

    /// A retry got its first byte, or failed.
    pub(crate) fn finish_retry(&self) {
        self.lock().retries.finish();
    }

    /// When it is worth coming back.
    pub(crate) fn expected_wait(&self) -> Duration {
        self.lock().expected_wait()
    }

    pub(super) fn answered(
        self: &Arc<Self>,
        worker: &Arc<Worker>,
        claim: Claim,
        answered: Answered,
        wait: Duration,
        now: Instant,
    ) {
        let mut state = self.lock();
        if claim.streams {
            let seconds = wait.as_secs_f64();
            state.seconds_to_first_byte += GAIN * (seconds - state.seconds_to_first_byte);
        }
        let least = state.least_errors_besides(worker);
        let Some(member) = state.member(worker) else {
            return;
        };
        if claim.streams {
            member.answer_came(now);
        }
        member.health.found(now);
        worker.set_down(false);
        let eject = match answered.verdict {
            Verdict::Well => {
                member.health.begun();
                false
            }
            Verdict::Neutral => {
                member.health.neutral();
                false
            }
            Verdict::Failed => member.health.failed(Failure::Server, least),
        };
        if let Some(load) = answered.load {
            let mut own_then = member.own;
            if answered.complete {
                own_then.count = own_then.count.saturating_sub(1);
                own_then.weight = own_then.weight.saturating_sub(claim.weight);
            }
            member.take_report(load, own_then, now);
        }
        if eject && state.eject(worker, Failure::Server, now) {
            self.meter.ejections.up();
        }
        self.fill(state, now);
    }

    pub(super) fn failed(
        self: &Arc<Self>,
        worker: &Arc<Worker>,
        failure: Failure,
        cause: String,
        now: Instant,
    ) {
        let mut state = self.lock();
        let least = state.least_errors_besides(worker);
        let Some(member) = state.member(worker) else {
            return;
        };
        member.last_error = Some((now, cause));
        if member.health.failed(failure, least) && state.eject(worker, failure, now) {
            self.meter.ejections.up();
        }
    }

    pub(super) fn release(
        self: &Arc<Self>,
        worker: &Arc<Worker>,
        claim: Claim,
        ended: Ended,
        now: Instant,
    ) {
        let mut state = self.lock();
        let is_good = ended.answer == Some(Verdict::Well);
        // What was refused or failed says nothing of how long work takes.
        if is_good {
            state.seconds_in_slot.add(ended.took.as_secs_f64());
        }
        if let Some(member) = state.member(worker) {
            member.own.count = member.own.count.saturating_sub(1);
            member.own.weight = member.own.weight.saturating_sub(claim.weight);
            if is_good && ended.whole {
                member.health.succeeded();
            } else {
                member.health.neutral();
            }
            if ended.answer.is_none() && claim.streams {
                member.answer_given_up();
            }
        }
        state
            .members
            .retain(|member| member.offered || member.own.count > 0);
        self.fill(state, now);
    }

    /// Whether a request that was with `tried` and is with `worker` may find somebody else there.
    pub(crate) fn has_another(
        &self,
        worker: &Arc<Worker>,
        tried: &[Arc<Worker>],
        now: Instant,
    ) -> bool {
        let is_one_of_them = |member: &Member| {
            let mut them = tried.iter().chain([worker]);
            them.any(|one| Arc::ptr_eq(one, &member.worker))
        };
        self.lock().members.iter().any(|member| {
            member.is_open()
                && member.health.standing(now) != Standing::Down
                && !is_one_of_them(member)
        })
    }

    /// What this router has with `worker`, for a report that is being fetched.
    pub(crate) fn own(&self, worker: &Arc<Worker>) -> Own {
        self.lock().member(worker).map_or(Own::default(), |m| m.own)
    }

    /// A report came at `taken` by another way than an answer.
    pub(crate) fn reported(
        self: &Arc<Self>,
        worker: &Arc<Worker>,
        load: LoadReport,
        own_then: Own,
        taken: Instant,
    ) {
        let mut state = self.lock();
        if let Some(member) = state.member(worker) {
            member.take_report(load, own_then, taken);
        }
        self.fill(state, shell::clock::now());
    }

    /// A probe was answered, or not.
    pub(crate) fn probed(
        self: &Arc<Self>,
        worker: &Arc<Worker>,
        failure: Option<String>,
        now: Instant,
    ) {
        // It may answer before it is a member.
        let first = failure.is_none() && worker.answered_probe();
        let mut state = self.lock();
        let Some(member) = state.member(worker) else {
            return;
        };
        let changed = member.health.probed(failure.is_none(), now);
        let down = member.health.standing(now) == Standing::Down;
        worker.set_down(down);
        if changed {
            tracing::info!(
                worker = worker.name,
                down,
                cause = failure,
                "a worker's probes changed their answer"
            );
        }
        if let Some(cause) = failure {
            member.last_error = Some((now, cause));
        }
        if changed || first {
            self.fill(state, now);
        }
    }

    /// Makes the members those that `offered` lists. Others leave the pick set at
    /// once and the pool when their last request is done.
    pub(crate) fn set_members(
        self: &Arc<Self>,
        offered: &[(Arc<Worker>, Option<Instant>)],
        dispatch: Option<Dispatch>,
        replicas: u32,
        now: Instant,
    ) {
        let mut state = self.lock();
        state.dispatch = dispatch;
        state.replicas.set(replicas, now);
        for member in &mut state.members {
            member.offered = false;
        }
        for (worker, renewed) in offered {
            if state.member(worker).is_none() {
                let member = Member::new(Arc::clone(worker), now);
                state.members.push(member);
            }
            if let Some(member) = state.member(worker) {
                member.offered = true;
                member.renewed = *renewed;
            }
        }
        state.members.retain(|m| m.offered || m.own.count > 0);
        self.fill(state, now);
    }

    /// The model is gone: whoever waits for a worker of it is sent away, and nobody comes
    /// in any more. What runs goes on.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.room.clear();
        for member in &mut state.members {
            member.offered = false;
        }
        state.members.retain(|m| m.own.count > 0);
    }

    /// What is in flight and what waits.
    pub(crate) fn demand(&self) -> Demand {
        let state = self.lock();
        Demand {
            in_flight: state.in_flight(),
            waiting: u32::try_from(state.room.len()).unwrap_or(u32::MAX),
        }
    }

    /// What an operator of the router wants to know.
    pub(crate) fn view(&self, now: Instant) -> Vec<WorkerView> {
        self.lock().view(&self.rules, now)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use protocol::load::Phase;

    use super::*;
    use crate::dispatch::admission::{Ask, Entry, Waiting};
    use crate::dispatch::pick::Preference;
    use crate::dispatch::reservation::Reservation;
    use crate::upstream::link::Links;

    pub(in crate::dispatch) fn pool() -> Arc<Pool> {
        let rules = Rules {
            dispatch: Dispatch::ShortestQueue,
            default_slots: 2,
            max_queued: 3,
            max_held: 2,
            max_waiting_bytes: 1000,
            warm_up: Duration::from_secs(10),
            poll_interval: Duration::from_secs(1),
        };
        Pool::new("m".to_owned(), rules, Arc::default())
    }

    pub(in crate::dispatch) fn worker(number: u16, now: Instant) -> Arc<Worker> {
        let authority = http::uri::Authority::try_from(format!("127.0.0.1:{number}")).unwrap();
        let name = format!("w{number}");
        Arc::new(Worker::new(
            name.clone(),
            name,
            Links::new(&authority, None),
            now,
        ))
    }

    pub(in crate::dispatch) fn offer(pool: &Arc<Pool>, workers: &[Arc<Worker>], now: Instant) {
        let offered: Vec<_> = workers.iter().map(|w| (Arc::clone(w), None)).collect();
        pool.set_members(&offered, None, 1, now);
        for worker in workers {
            pool.probed(worker, None, now);
        }
    }

    pub(in crate::dispatch) fn ask() -> Ask {
        Ask {
            tokens: 100,
            patience: Duration::from_secs(60),
            ..Ask::default()
        }
    }

    pub(in crate::dispatch) fn load(running: u32, slots: u32, at: u64) -> LoadReport {
        LoadReport {
            phase: Phase::Serving,
            running,
            slots,
            captured_at_ms: at,
            ..LoadReport::default()
        }
    }

    fn preferences(pool: &Arc<Pool>, now: Instant) -> Vec<Preference> {
        let all = pool.view(now).into_iter();
        all.filter_map(|worker| worker.preference).collect()
    }

    #[test]
    fn workers_that_are_down_count_among_those_that_may_rest() {
        use Preference::{Down, Ejected, Good};
        let now = shell::clock::now();
        let pool = pool();
        let workers = [1, 2, 3, 4].map(|number| worker(number, now));
        offer(&pool, &workers, now);
        let fail = |number: usize| {
            let cause = "refused".to_owned();
            pool.failed(&workers[number], Failure::Connect, cause, now);
        };
        fail(0);
        assert_eq!(preferences(&pool, now), [Ejected, Good, Good, Good]);
        for _ in 0..2 {
            pool.probed(&workers[1], Some("no answer".to_owned()), now);
        }
        fail(2);
        assert_eq!(preferences(&pool, now), [Ejected, Down, Good, Good]);
    }

    #[test]
    fn requests_that_fail_together_eject_once() {
        let now = shell::clock::now();
        let pool = pool();
        let workers = [1, 2, 3, 4].map(|number| worker(number, now));
        offer(&pool, &workers, now);
        for _ in 0..5 {
            pool.failed(&workers[0], Failure::Connect, String::new(), now);
        }
        assert_eq!(pool.meter.ejections.get(), 1);
        let rested = now + Duration::from_secs(1);
        assert_eq!(preferences(&pool, rested), [Preference::Good; 4]);
    }

    #[test]
    fn a_request_leaves_a_worker_that_is_down_only_for_one_that_is_not() {
        let now = shell::clock::now();
        let pool = pool();
        let workers = [1, 2, 3].map(|number| worker(number, now));
        offer(&pool, &workers[..1], now);
        assert!(!pool.has_another(&workers[0], &[], now));
        offer(&pool, &workers, now);
        assert!(pool.has_another(&workers[0], &[], now));
        let tried = [Arc::clone(&workers[1])];
        assert!(pool.has_another(&workers[0], &tried, now));
        for _ in 0..2 {
            pool.probed(&workers[2], Some("no answer".to_owned()), now);
        }
        assert!(!pool.has_another(&workers[0], &tried, now));
    }

    #[test]
    fn an_answer_shows_that_a_worker_is_not_down() {
        let now = shell::clock::now();
        let pool = pool();
        let workers = [worker(1, now)];
        offer(&pool, &workers, now);
        let Entry::Now(mut reservation) = pool.enter(ask(), now) else {
            panic!("there is room");
        };
        for _ in 0..2 {
            pool.probed(&workers[0], Some("no answer".to_owned()), now);
        }
        assert!(workers[0].is_down());
        let answered = Answered {
            load: None,
            complete: false,
            verdict: Verdict::Well,
        };
        reservation.answered(answered, now);
        assert!(!workers[0].is_down());
        assert_eq!(preferences(&pool, now), [Preference::Good]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Enter,
        Answer(usize, bool),
        Fail(usize),
        Release(usize),
        GiveUp(usize),
        Offer(usize),
        Report(usize, u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => Just(Step::Enter),
            2 => (any::<usize>(), any::<bool>()).prop_map(|(n, b)| Step::Answer(n, b)),
            1 => any::<usize>().prop_map(Step::Fail),
            3 => any::<usize>().prop_map(Step::Release),
            1 => any::<usize>().prop_map(Step::GiveUp),
            1 => (0usize..4).prop_map(Step::Offer),
            1 => (0usize..3, 0u32..9).prop_map(|(w, q)| Step::Report(w, q)),
        ]
    }

    proptest! {
        #[test]
        fn what_is_in_flight_is_what_is_held_and_returns_to_zero(steps in prop::collection::vec(step(), 0..120)) {
            let mut now = shell::clock::now();
            let pool = pool();
            let workers = [worker(1, now), worker(2, now), worker(3, now)];
            offer(&pool, &workers, now);
            let mut held: Vec<Reservation> = Vec::new();
            let mut waiting: Vec<Waiting> = Vec::new();
            for (at, step) in steps.into_iter().enumerate() {
                now += Duration::from_millis(100);
                let place = |n: usize| (!held.is_empty()).then(|| n % held.len());
                match step {
                    Step::Enter => match pool.enter(ask(), now) {
                        Entry::Now(reservation) => held.push(reservation),
                        Entry::Wait(wait) => waiting.push(wait),
                        Entry::Refused(_) => {}
                    },
                    Step::Answer(n, well) => if let Some(n) = place(n) {
                        let verdict = if well { Verdict::Well } else { Verdict::Failed };
                        held[n].answered(Answered { load: None, complete: false, verdict }, now);
                    },
                    Step::Fail(n) => if let Some(n) = place(n) {
                        held.remove(n).failed(Failure::Connect, String::new(), now);
                    },
                    Step::Release(n) => if let Some(n) = place(n) {
                        drop(held.remove(n));
                    },
                    Step::GiveUp(n) => if !waiting.is_empty() {
                        let n = n % waiting.len();
                        drop(waiting.remove(n));
                    },
                    Step::Offer(count) => offer(&pool, &workers[..count.min(3)], now),
                    Step::Report(w, queue) => pool.reported(&workers[w], load(queue, 2, at as u64), Own::default(), now),
                }
                let mut still = Vec::new();
                for mut wait in waiting {
                    match wait.try_slot() {
                        Some(reservation) => held.push(reservation),
                        None => still.push(wait),
                    }
                }
                waiting = still;
                let demand = pool.demand();
                prop_assert_eq!(demand.in_flight as usize, held.len());
                prop_assert_eq!(demand.waiting as usize, waiting.len());
            }
            drop(held);
            drop(waiting);
            prop_assert_eq!(pool.demand(), Demand::default());
        }
    }
}
