//! A request from the moment its body is there: a slot, attempts at different
//! workers, an answer or a refusal.

use std::sync::Arc;
use std::time::Duration;

use http::Response;
use rand::Rng as _;

use crate::dispatch::admission::{Ask, Entry, Shed};
use crate::dispatch::member::Worker;
use crate::dispatch::pool::Pool;
use crate::dispatch::reservation::Reservation;
use crate::metrics::meter::{CALLER_LEFT, Phase, RetryOutcome, RetryReason, ShedReason};
use crate::proxy::attempt::{Job, MAX_RETRIES, Outcome, attempt};
use crate::proxy::body::Body;
use crate::refusal::Refusal;

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
    let mut over = job.over.wait();
    let result = tokio::select! {
        biased;
        result = attempts(&job, tokens, &mut journey) => result,
        () = over.over() => Err(Refusal::draining()),
    };
    journey.arrived = true;
    let status = match &result {
        Ok(response) => response.status(),
        Err(refusal) => refusal.status,
    };
    pool.meter.answered(status.as_u16());
    if let Some(span) = &job.span {
        span.answered(status);
    }
    result
}

async fn attempts(
    job: &Job,
    tokens: u64,
    journey: &mut Journey<'_>,
) -> Result<Response<Body>, Refusal> {
    let pool = journey.pool;
    let mut tried: Vec<Arc<Worker>> = Vec::new();
    // What the caller gets if no other worker does better.
    let mut last = Err(Refusal::workers_failed());
    let mut retry: Option<Retry> = None;
    loop {
        journey.phase = Phase::Queued;
        let slot = slot(pool, job, tokens, &tried).await;
        let Ok(Some(reservation)) = slot else {
            end(retry.take(), RetryOutcome::NoWorker);
            return slot.and(last);
        };
        let worker = Arc::clone(reservation.worker());
        journey.phase = Phase::FirstByte;
        let outcome = attempt(job, reservation, &tried).await;
        let answered = matches!(outcome, Outcome::Answer(_));
        end(
            retry.take(),
            match answered {
                true => RetryOutcome::Answered,
                false => RetryOutcome::Failed,
            },
        );
        let (reason, response) = match outcome {
            Outcome::Answer(response) => return Ok(response),
            Outcome::Refused(refusal) => return Err(refusal),
            Outcome::Again(reason, response) => (reason, response),
        };
        // What a worker said tells more than that another one could not be reached.
        if let Some(response) = response {
            last = Ok(response);
        }
        if tried.len() == MAX_RETRIES {
            return last;
        }
        tried.push(worker);
        retry = permit(pool, job, reason, tried.len()).await;
        if retry.is_none() {
            return last;
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
        streams: job.streams,
        bytes: job.payload.len(),
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
        Entry::Refused(Shed::Gone) => return Err(Refusal::unknown_model(&job.model)),
        Entry::Refused(Shed::HoldFull) => return shed(ShedReason::HoldFull, Refusal::hold_full()),
        Entry::Refused(Shed::BytesFull) => {
            let refusal = Refusal::bytes_full(pool.expected_wait());
            return shed(ShedReason::BytesFull, refusal);
        }
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
        Ok(None) => Err(Refusal::unknown_model(&job.model)),
        Err(_) if held => shed(ShedReason::NoWorker, Refusal::no_worker()),
        Err(_) => {
            let wait = pool.expected_wait();
            shed(ShedReason::QueueTimeout, Refusal::queue_timeout(wait))
        }
    }
}

/// A retry that is wanted, and under way once the budget allows it. However it
/// ends, it is counted, and its place in the budget is given back.
struct Retry {
    pool: Arc<Pool>,
    reason: RetryReason,
    outcome: RetryOutcome,
    has_permit: bool,
}

impl Drop for Retry {
    fn drop(&mut self) {
        if self.has_permit {
            self.pool.finish_retry();
        }
        self.pool.meter.retries.up(self.reason, self.outcome);
    }
}

fn end(retry: Option<Retry>, outcome: RetryOutcome) {
    if let Some(mut retry) = retry {
        retry.outcome = outcome;
    }
}

/// Waits for the budget, with a random pause (full jitter) before each look.
async fn permit(pool: &Arc<Pool>, job: &Job, reason: RetryReason, tries: usize) -> Option<Retry> {
    let mut retry = Retry {
        pool: Arc::clone(pool),
        reason,
        outcome: RetryOutcome::Abandoned,
        has_permit: false,
    };
    let longest = BACK_OFF * u32::try_from(tries).unwrap_or(1);
    let mut waited = false;
    while shell::clock::now() < job.deadline {
        let pause = longest.mul_f64(rand::rng().random());
        tokio::time::sleep(pause).await;
        if pool.try_retry() {
            retry.has_permit = true;
            return Some(retry);
        }
        if !waited {
            waited = true;
            pool.meter.retry_budget_waits.up();
        }
    }
    end(Some(retry), RetryOutcome::TooLate);
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
            self.pool.meter.answered(CALLER_LEFT);
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use http::{HeaderMap, StatusCode, Uri};

    use super::*;
    use crate::args::{Dispatch, RouterArgs};
    use crate::dispatch::pool::Rules;
    use crate::end::End;
    use crate::request::intake::Payload;

    fn pool() -> Arc<Pool> {
        let rules = Rules {
            dispatch: Dispatch::ShortestQueue,
            default_slots: 1,
            max_queued: 9,
            max_held: 9,
            max_waiting_bytes: 9,
            warm_up: Duration::from_secs(10),
            poll_interval: Duration::from_secs(1),
        };
        Pool::new("ns/m".to_owned(), rules, Arc::default())
    }

    fn job() -> Job {
        let timeouts = RouterArgs::parse_from(["llava-router"]).timeouts;
        let started = shell::clock::now();
        Job {
            uri: Uri::default(),
            headers: HeaderMap::new(),
            payload: Payload::empty(),
            span: None,
            model: "m".to_owned(),
            is_llava: false,
            streams: false,
            started,
            deadline: started + timeouts.request_timeout,
            timeouts: Arc::new(timeouts),
            over: End::default(),
        }
    }

    #[tokio::test]
    async fn a_request_that_waits_for_a_deleted_model_is_told_that_there_is_none() {
        let pool = pool();
        let waiting = tokio::spawn(forward(Arc::clone(&pool), job(), 100));
        while pool.demand().waiting == 0 {
            tokio::task::yield_now().await;
        }
        pool.close();
        let waited = waiting.await.unwrap().unwrap_err();
        let late = forward(pool, job(), 100).await.unwrap_err();
        for refusal in [waited, late] {
            assert_eq!(refusal.status, StatusCode::NOT_FOUND);
            assert!(refusal.error.message.contains("`m`"), "{refusal:?}");
        }
    }
}
