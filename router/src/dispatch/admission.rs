//! How a request comes to a slot: at once, after a wait in the room, or not at
//! all. The wait is bounded in number and time, and whoever would wait longer
//! than it can is told so at once.

use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use crate::dispatch::member::{Member, Worker};
use crate::dispatch::pool::Pool;
use crate::dispatch::reservation::{Claim, Reservation};
use crate::dispatch::room::Ticket;
use crate::dispatch::state::{Found, State};

/// A request that asks for a slot.
#[derive(Debug, Default)]
pub(crate) struct Ask {
    /// Its estimated size.
    pub(crate) tokens: u64,
    /// Whether its answer comes as it is made.
    pub(crate) streams: bool,
    /// Of its body, which is held while it waits.
    pub(crate) bytes: u64,
    /// Workers that it must not go to.
    pub(crate) tried: Vec<Arc<Worker>>,
    /// How long it can wait at most.
    pub(crate) patience: Duration,
}

/// The answer to an [`Ask`].
#[derive(Debug)]
pub(crate) enum Entry {
    /// Go.
    Now(Reservation),
    /// Wait.
    Wait(Waiting),
    /// No.
    Refused(Shed),
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Shed {
    /// The waiting room is full, or the wait would be longer than the request can wait.
    Busy {
        /// When it is worth coming back.
        retry_after: Duration,
    },
    /// The room for requests that wait for a first worker is full.
    HoldFull,
    /// The bodies of those that wait are as large as they may be.
    BytesFull,
    /// Every worker was tried.
    Exhausted,
    /// The model is gone.
    Gone,
}

/// A place in the waiting room; given up on drop.
#[derive(Debug)]
pub(crate) struct Waiting {
    pool: Arc<Pool>,
    ticket: Ticket,
    reply: tokio::sync::oneshot::Receiver<Reservation>,
    bytes: u64,
    /// Whether there is no worker at all yet.
    pub(crate) held: bool,
}

impl Pool {
    /// Asks for a slot.
    pub(crate) fn enter(self: &Arc<Self>, ask: Ask, now: Instant) -> Entry {
        let mut state = self.lock();
        if state.closed {
            return Entry::Refused(Shed::Gone);
        }
        let claim = Claim {
            weight: state.usual.weigh(ask.tokens),
            streams: ask.streams,
        };
        let is_retry = !ask.tried.is_empty();
        if state.room.len() == 0 || is_retry {
            match state.reserve(&self.rules, &ask.tried, claim, now) {
                Found::Worker(worker) => {
                    drop(state);
                    return Entry::Now(Reservation::new(Arc::clone(self), worker, claim, now));
                }
                Found::AllTried => return Entry::Refused(Shed::Exhausted),
                Found::Full | Found::Nobody => {}
            }
        }
        let held = !state.members.iter().any(Member::is_open);
        let waiting = state.room.len();
        if held && waiting >= self.rules.max_held {
            return Entry::Refused(Shed::HoldFull);
        }
        // How long it takes with a worker that was not heard of yet, nobody knows.
        let wait = state.expected_wait();
        let is_late = wait > ask.patience
            && (state.members.iter()).any(|member| member.is_open() && member.is_heard_of());
        if !held && !is_retry && (waiting >= self.rules.max_queued || is_late) {
            return Entry::Refused(Shed::Busy { retry_after: wait });
        }
        // One alone may wait, however large it is.
        let bytes = state.waiting_bytes + ask.bytes;
        if !is_retry && state.waiting_bytes > 0 && bytes > self.rules.max_waiting_bytes {
            return Entry::Refused(Shed::BytesFull);
        }
        state.waiting_bytes = bytes;
        let (ticket, reply) = state.room.enter(claim, ask.tried, is_retry);
        drop(state);
        if held && waiting == 0 {
            self.held.notify_one();
        }
        Entry::Wait(Waiting {
            pool: Arc::clone(self),
            ticket,
            reply,
            bytes: ask.bytes,
            held,
        })
    }

    /// Gives free slots to those who wait. Reservations are handed out with the
    /// lock released, because one for a waiter that has gone comes back here.
    pub(super) fn fill(self: &Arc<Self>, mut state: MutexGuard<'_, State>, now: Instant) {
        if state.room.len() == 0 {
            return;
        }
        let placed = state.place_waiters(&self.rules, now);
        drop(state);
        for (waiter, worker) in placed {
            let reservation = Reservation::new(Arc::clone(self), worker, waiter.claim, now);
            drop(waiter.reply.send(reservation));
        }
    }
}

impl Waiting {
    /// Waits for the slot; `None` when the model is gone.
    pub(crate) async fn slot(&mut self) -> Option<Reservation> {
        (&mut self.reply).await.ok()
    }
}

#[cfg(test)]
impl Waiting {
    pub(super) fn try_slot(&mut self) -> Option<Reservation> {
        self.reply.try_recv().ok()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.pool.lock();
        state.room.leave(self.ticket);
        state.waiting_bytes -= self.bytes;
    }
}

#[cfg(test)]
mod tests {
    use protocol::load::{Demand, Phase};

    use super::*;
    use crate::dispatch::estimate::{Own, UNIT};
    use crate::dispatch::pool::tests::{ask, load, offer, pool, worker};
    use crate::dispatch::reservation::{Answered, Verdict};

    fn well() -> Answered {
        Answered {
            load: None,
            complete: false,
            verdict: Verdict::Well,
        }
    }

    #[test]
    fn the_least_loaded_for_its_slots_is_picked() {
        let now = shell::clock::now();
        let pool = pool();
        let workers = [worker(1, now), worker(2, now)];
        offer(&pool, &workers, now);
        pool.reported(&workers[0], load(3, 16, 1), Own::default(), now);
        pool.reported(&workers[1], load(2, 4, 1), Own::default(), now);
        let Entry::Now(reservation) = pool.enter(ask(), now) else {
            panic!("there is room");
        };
        assert!(Arc::ptr_eq(reservation.worker(), &workers[0]));
    }

    #[test]
    fn without_fresh_reports_of_all_only_our_own_count() {
        let now = shell::clock::now();
        let pool = pool();
        let workers = [worker(1, now), worker(2, now)];
        offer(&pool, &workers, now);
        pool.reported(&workers[0], load(9, 16, 1), Own::default(), now);
        let mut held = Vec::new();
        for _ in 0..4 {
            let Entry::Now(reservation) = pool.enter(ask(), now) else {
                break;
            };
            held.push(reservation);
        }
        let first = held
            .iter()
            .filter(|r| Arc::ptr_eq(r.worker(), &workers[0]))
            .count();
        assert!(
            first >= 2,
            "the report of one was compared with nothing of the other"
        );
        // And this is what operators see.
        let queues = || -> Vec<u64> { pool.view(now).iter().map(|w| w.queue.count).collect() };
        assert_eq!(queues(), [4, 0]);
        pool.reported(&workers[1], load(4, 16, 1), Own::default(), now);
        assert_eq!(queues(), [13, 4]);
    }

    #[test]
    fn slots_that_are_free_for_all_that_is_known_are_used_however_many_routers_there_are() {
        let now = shell::clock::now();
        let pool = pool();
        let worker = worker(1, now);
        pool.set_members(&[(Arc::clone(&worker), None)], None, 4, now);
        pool.reported(&worker, load(2, 8, 1), Own::default(), now);
        // Its slots and a quarter more, less what it has of others.
        let entries: Vec<_> = (0..9).map(|_| pool.enter(ask(), now)).collect();
        let (last, first) = entries.split_last().unwrap();
        assert!(first.iter().all(|entry| matches!(entry, Entry::Now(_))));
        assert!(matches!(last, Entry::Wait(_)), "{last:?}");
        // What others may have sent meanwhile counts where workers are compared.
        assert_eq!(pool.view(now)[0].queue.weight, (2 + 4 * 8) * UNIT);
    }

    #[test]
    fn a_suspect_that_answers_probes_is_better_than_the_queue() {
        let start = shell::clock::now();
        let pool = pool();
        let workers = [worker(1, start), worker(2, start)];
        offer(&pool, &workers[..1], start);
        let stream = Ask {
            streams: true,
            ..ask()
        };
        let Entry::Now(_owed) = pool.enter(stream, start) else {
            panic!("there is room");
        };
        offer(&pool, &workers, start);
        let now = start + Duration::from_secs(3);
        let picked = |entry: &Entry| match entry {
            Entry::Now(reservation) => Some(Arc::clone(reservation.worker())),
            _ => None,
        };
        let good = [(); 3].map(|()| pool.enter(ask(), now));
        for entry in &good {
            assert!(Arc::ptr_eq(&picked(entry).unwrap(), &workers[1]));
        }
        let suspect = pool.enter(ask(), now);
        assert!(Arc::ptr_eq(&picked(&suspect).unwrap(), &workers[0]));
        pool.probed(&workers[0], Some("no answer".to_owned()), now);
        assert!(picked(&pool.enter(ask(), now)).is_none());
    }

    #[test]
    fn whoever_would_wait_longer_than_it_can_is_told_how_long_at_once() {
        let start = shell::clock::now();
        let pool = pool();
        let workers = [worker(1, start)];
        offer(&pool, &workers, start);
        let enter = |now| match pool.enter(ask(), now) {
            Entry::Now(reservation) => reservation,
            other => panic!("there is room: {other:?}"),
        };
        let mut at_worker = [enter(start), enter(start), enter(start)];
        at_worker[0].answered(well(), start);
        // Three at a time, 90 s each: one ends every 30 s.
        let now = start + Duration::from_secs(90);
        at_worker[0].release_at(now);
        at_worker[0] = enter(now);
        let waiting = [pool.enter(ask(), now), pool.enter(ask(), now)];
        assert!(waiting.iter().all(|entry| matches!(entry, Entry::Wait(_))));
        let Entry::Refused(Shed::Busy { retry_after }) = pool.enter(ask(), now) else {
            panic!("it would wait for 90 s, and can for 60 s");
        };
        assert_eq!(retry_after, Duration::from_secs(90));
    }

    #[test]
    fn a_large_request_counts_for_several() {
        let now = shell::clock::now();
        let pool = pool();
        offer(&pool, &[worker(1, now), worker(2, now)], now);
        let enter = |tokens| match pool.enter(Ask { tokens, ..ask() }, now) {
            Entry::Now(reservation) => reservation,
            other => panic!("there is room: {other:?}"),
        };
        // The usual size.
        drop(enter(100));
        let large = enter(1000);
        let others = [enter(100), enter(100), enter(100)];
        for other in &others {
            assert!(!Arc::ptr_eq(other.worker(), large.worker()));
        }
    }

    #[test]
    fn a_worker_that_just_came_is_spared() {
        let start = shell::clock::now();
        let pool = pool();
        let workers = [worker(1, start), worker(2, start)];
        offer(&pool, &workers[..1], start);
        let now = start + Duration::from_secs(60);
        offer(&pool, &workers, now);
        let picked = |now| match pool.enter(ask(), now) {
            Entry::Now(reservation) => reservation,
            other => panic!("there is room: {other:?}"),
        };
        let mut at_worker = [picked(now), picked(now)];
        for reservation in &mut at_worker {
            assert!(Arc::ptr_eq(reservation.worker(), &workers[0]));
            reservation.answered(well(), now);
        }
        let warm = picked(now + Duration::from_secs(10));
        assert!(Arc::ptr_eq(warm.worker(), &workers[1]));
    }

    #[test]
    fn those_who_wait_for_a_worker_that_was_not_heard_of_yet_are_not_sent_away() {
        let start = shell::clock::now();
        let pool = pool();
        let slow = worker(1, start);
        offer(&pool, std::slice::from_ref(&slow), start);
        let Entry::Now(mut answer) = pool.enter(ask(), start) else {
            panic!("there is room");
        };
        answer.answered(well(), start);
        // Requests take ten minutes here; nobody waits longer than one.
        answer.release_at(start + Duration::from_secs(600));
        drop(answer);
        let new = worker(2, start);
        let offered = [(Arc::clone(&new), None)];
        pool.set_members(&offered, None, 1, start);
        let first = pool.enter(ask(), start);
        assert!(matches!(first, Entry::Now(_)), "{first:?}");
        let second = pool.enter(ask(), start);
        let Entry::Wait(mut second) = second else {
            panic!("it may have room: {second:?}");
        };
        assert!(second.try_slot().is_none());
        pool.probed(&new, Some("silent".to_owned()), start);
        assert!(second.try_slot().is_none());
        pool.probed(&new, None, start);
        assert!(second.try_slot().is_some());
    }

    #[test]
    fn a_draining_worker_takes_nothing_new() {
        let now = shell::clock::now();
        let pool = pool();
        let workers = [worker(1, now)];
        offer(&pool, &workers, now);
        let mut report = load(0, 4, 1);
        report.phase = Phase::Draining;
        pool.reported(&workers[0], report, Own::default(), now);
        assert!(matches!(pool.enter(ask(), now), Entry::Wait(waiting) if waiting.held));
    }

    #[test]
    fn the_bodies_of_those_that_wait_are_bounded_in_sum() {
        let now = shell::clock::now();
        let pool = pool();
        let enter = |bytes| pool.enter(Ask { bytes, ..ask() }, now);
        let large = enter(5000);
        assert!(matches!(large, Entry::Wait(_)), "it is alone");
        assert!(matches!(enter(1), Entry::Refused(Shed::BytesFull)));
        drop(large);
        let first = enter(600);
        assert!(matches!(enter(401), Entry::Refused(Shed::BytesFull)));
        let second = enter(400);
        assert!(matches!(second, Entry::Wait(_)), "{second:?}");
        drop((first, second));
        assert!(matches!(enter(1000), Entry::Wait(_)));
    }

    #[test]
    fn the_first_held_request_is_told_and_the_room_is_bounded() {
        let now = shell::clock::now();
        let pool = pool();
        let waiting: Vec<_> = (0..3).map(|_| pool.enter(ask(), now)).collect();
        assert!(matches!(waiting[1], Entry::Wait(_)));
        assert!(matches!(waiting[2], Entry::Refused(Shed::HoldFull)));
        assert_eq!(pool.demand().waiting, 2);
        drop(waiting);
        assert_eq!(pool.demand(), Demand::default());
    }
}
