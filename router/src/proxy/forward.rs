//! A request from the moment its body is there: a slot, attempts at different
//! workers, an answer or a refusal.

use std::sync::Arc;
use std::time::Duration;

use http::Response;
use rand::Rng as _;

use crate::dispatch::member::Worker;
use crate::dispatch::pool::{Ask, Entry, Pool, Shed};
use crate::dispatch::reservation::Reservation;
use crate::metrics::meter::{Phase, ShedReason};
use crate::proxy::attempt::{Job, Outcome, attempt};
use crate::proxy::body::Body;
use crate::refusal::Refusal;

/// Attempts after the first.
const MAX_RETRIES: usize = 2;
/// The pause before the first retry is up to this, before the second up to twice.
const BACK_OFF: Duration = Duration::from_millis(25);

/// Brings the request to an answer.
pub(crate) async fn forward(
    pool: Arc<Pool>,
    job: Job,
    tokens: u64,
) -> Result<Response<Body>, Refusal> {
    let mut journey = Journey {
        pool: &pool,
        phase: Phase::Queued,
        arrived: false,
    };
    let result = attempts(&job, tokens, &mut journey).await;
    journey.arrived = true;
    let status = match &result {
        Ok(response) => response.status(),
        Err(refusal) => refusal.status,
    };
    pool.meter.answered(status.as_u16());
    result
}

async fn attempts(
    job: &Job,
    tokens: u64,
    journey: &mut Journey<'_>,
) -> Result<Response<Body>, Refusal> {
    let pool = journey.pool;
    let mut tried: Vec<Arc<Worker>> = Vec::new();
    let mut last = None;
    let mut retry = None;
    loop {
        journey.phase = Phase::Queued;
        let Some(reservation) = slot(pool, job, tokens, &tried).await? else {
            return last.unwrap_or_else(|| Err(Refusal::workers_failed()));
        };
        let worker = Arc::clone(reservation.worker());
        journey.phase = Phase::FirstByte;
        let outcome = attempt(job, reservation, tried.len()).await;
        drop(retry.take());
        let (reason, response) = match outcome {
            Outcome::Answer(response) => return Ok(response),
            Outcome::TooSlow(code) => return Err(Refusal::too_slow(code)),
            Outcome::Again(reason, response) => (reason, response),
        };
        last = Some(response.ok_or_else(Refusal::workers_failed));
        if tried.len() == MAX_RETRIES {
            return last.unwrap_or_else(|| Err(Refusal::workers_failed()));
        }
        tried.push(worker);
        pool.meter.retries.up(reason);
        match permit(pool, job, tried.len()).await {
            Some(permit) => retry = Some(permit),
            None => return last.unwrap_or_else(|| Err(Refusal::workers_failed())),
        }
    }
}

/// A slot, at once or after a wait; `None` when every worker was tried.
async fn slot(
    pool: &Arc<Pool>,
    job: &Job,
    tokens: u64,
    tried: &[Arc<Worker>],
) -> Result<Option<Reservation>, Refusal> {
    let now = shell::clock::now();
    let left = job.deadline.saturating_duration_since(now);
    let ask = Ask {
        tokens,
        tried: tried.to_vec(),
        patience: left.min(job.timeouts.queue_timeout),
    };
    let shed = |reason, refusal| {
        pool.meter.sheds.up(reason);
        Err(refusal)
    };
    let mut waiting = match pool.enter(ask, now) {
        Entry::Now(reservation) => return Ok(Some(reservation)),
        Entry::Refused(Shed::Exhausted) => return Ok(None),
        Entry::Refused(Shed::HoldFull) => return shed(ShedReason::HoldFull, Refusal::hold_full()),
        Entry::Refused(Shed::Busy { retry_after }) => {
            return shed(ShedReason::QueueFull, Refusal::busy(retry_after));
        }
        Entry::Wait(waiting) => waiting,
    };
    let held = waiting.held;
    let limit = match held {
        true => job.timeouts.hold_timeout,
        false => job.timeouts.queue_timeout,
    };
    let got = tokio::time::timeout(limit.min(left), waiting.slot()).await;
    pool.meter
        .queue_wait
        .observe(shell::clock::now().saturating_duration_since(now));
    match got {
        Ok(Some(reservation)) => Ok(Some(reservation)),
        _ if held => shed(ShedReason::NoWorker, Refusal::no_worker()),
        _ => {
            let wait = pool.expected_wait();
            shed(ShedReason::QueueTimeout, Refusal::queue_timeout(wait))
        }
    }
}

/// A retry that the budget allows; given back on drop.
struct Permit(Arc<Pool>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.finish_retry();
    }
}

/// Waits for the budget, with a random pause (full jitter) before each look.
async fn permit(pool: &Arc<Pool>, job: &Job, tries: usize) -> Option<Permit> {
    let longest = BACK_OFF * u32::try_from(tries).unwrap_or(1);
    let mut waited = false;
    while shell::clock::now() < job.deadline {
        let pause = longest.mul_f64(rand::rng().random());
        tokio::time::sleep(pause).await;
        if pool.try_retry() {
            return Some(Permit(Arc::clone(pool)));
        }
        if !waited {
            waited = true;
            pool.meter.retry_budget_waits.up();
        }
    }
    None
}

/// Where a request is, to be noted if its caller leaves.
struct Journey<'a> {
    pool: &'a Arc<Pool>,
    phase: Phase,
    arrived: bool,
}

impl Drop for Journey<'_> {
    fn drop(&mut self) {
        if !self.arrived {
            self.pool.meter.caller_aborts.up(self.phase);
            self.pool.meter.answered(499);
        }
    }
}
