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
    weight: u64,
    since: Instant,
    answer: Option<Verdict>,
    released: bool,
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
    pub(super) fn new(pool: Arc<Pool>, worker: Arc<Worker>, weight: u64, now: Instant) -> Self {
        Self {
            pool,
            worker,
            weight,
            since: now,
            answer: None,
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
            let gone = if answered.complete { self.weight } else { 0 };
            self.pool.answered(&self.worker, answered, gone, wait, now);
        }
        wait
    }

    /// The attempt failed.
    pub(crate) fn failed(&self, failure: Failure, cause: String, now: Instant) {
        self.pool.failed(&self.worker, failure, cause, now);
    }
}

impl Reservation {
    /// Gives the slot back before the drop.
    pub(crate) fn release(&mut self) {
        self.release_at(shell::clock::now());
    }

    pub(super) fn release_at(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.released, true) {
            self.pool
                .release(&self.worker, self.weight, self.answer, self.since, now);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.release();
    }
}
