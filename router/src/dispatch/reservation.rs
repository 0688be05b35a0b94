//! A slot held at a worker. It lives as long as the answer's body and is given
//! back exactly once: when it is dropped, whatever the reason.

use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::load::LoadReport;

use crate::dispatch::health::Failure;
use crate::dispatch::member::Worker;
use crate::dispatch::pool::Pool;

/// A slot held at a worker.
#[derive(Debug)]
pub(crate) struct Reservation {
    pool: Arc<Pool>,
    worker: Arc<Worker>,
    claim: Claim,
    since: Instant,
    answer: Option<Verdict>,
    whole: bool,
    released: bool,
}

/// What a request takes of the worker that it goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// Its size, in [`UNIT`](crate::dispatch::estimate::UNIT)s.
    pub(crate) weight: u64,
    /// Whether its answer comes as it is made, so that a missing first byte means something.
    pub(crate) streams: bool,
}

/// What the head of an answer told.
#[derive(Clone, Debug)]
pub(crate) struct Answered {
    /// The worker's report, if it sent one.
    pub(crate) load: Option<LoadReport>,
    /// Whether the whole answer is there, so that the report no longer counts
    /// this request.
    pub(crate) complete: bool,
    /// What the status says of the worker.
    pub(crate) verdict: Verdict,
}

/// How a request left its slot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    /// What the head of its answer said of the worker, if there was one.
    pub(super) answer: Option<Verdict>,
    /// Whether the answer came to its end.
    pub(super) whole: bool,
    /// How long it had the slot.
    pub(super) took: Duration,
}

/// What an answer's status says of the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It does well.
    Well,
    /// It is busy, or the request was wrong: nothing.
    Neutral,
    /// It failed.
    Failed,
}

impl Reservation {
    pub(super) fn new(pool: Arc<Pool>, worker: Arc<Worker>, claim: Claim, now: Instant) -> Self {
        Self {
            pool,
            worker,
            claim,
            since: now,
            answer: None,
            whole: false,
            released: false,
        }
    }

    /// Where the request goes.
    pub(crate) fn worker(&self) -> &Arc<Worker> {
        &self.worker
    }

    /// The pool that it belongs to.
    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// The first byte came. Returns the time it took.
    pub(crate) fn answered(&mut self, answered: Answered, now: Instant) -> Duration {
        let wait = now.saturating_duration_since(self.since);
        self.worker.heard(now);
        if self.answer.is_none() {
            self.answer = Some(answered.verdict);
            self.whole = answered.complete;
            self.pool
                .answered(&self.worker, self.claim, answered, wait, now);
        }
        wait
    }

    /// The attempt failed.
    pub(crate) fn failed(&self, failure: Failure, cause: String, now: Instant) {
        self.pool.failed(&self.worker, failure, cause, now);
    }
}

impl Reservation {
    /// The answer came to its end: gives the slot back.
    pub(crate) fn finish(&mut self) {
        self.whole = true;
        self.release();
    }

    /// Gives the slot back before the drop.
    pub(crate) fn release(&mut self) {
        self.release_at(shell::clock::now());
    }

    pub(super) fn release_at(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.released, true) {
            let ended = Ended {
                answer: self.answer,
                whole: self.whole,
                took: now.saturating_duration_since(self.since),
            };
            self.pool.release(&self.worker, self.claim, ended, now);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.release();
    }
}
