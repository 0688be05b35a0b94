//! One attempt: a connection, the request, the head of the answer and its first
//! bytes. Until these are there the caller has seen nothing, and another worker
//! can take over.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, response};
use protocol::header as ours;
use protocol::load::LoadReport;

use crate::args::Timeouts;
use crate::dispatch::health::Failure;
use crate::dispatch::member::Worker;
use crate::dispatch::reservation::{Answered, Reservation, Verdict};
use crate::end::End;
use crate::metrics::meter::RetryReason;
use crate::proxy::body::Body;
use crate::proxy::cut::{Cutter, Framing};
use crate::proxy::headers;
use crate::proxy::relay::{Relay, RelayPace, Trail};
use crate::refusal::Refusal;
use crate::request::intake::Payload;
use crate::trace::RequestSpan;
use crate::upstream::exchange::{Answer, send};
use crate::upstream::link::Link;

/// How often a waiting attempt looks whether its worker is still there.
const LOOK: Duration = Duration::from_millis(250);
/// An answer of known length up to this is taken whole before it is passed on:
/// a worker that dies in the middle of it costs a retry, not an error.
const WHOLE: u64 = 64 * 1024;

/// What is sent to a worker, as often as need be.
#[derive(Debug)]
pub(crate) struct Job {
    /// The path and query.
    pub(crate) uri: Uri,
    /// Headers for the worker.
    pub(crate) headers: HeaderMap,
    /// The caller's bytes.
    pub(crate) payload: Payload,
    /// Its span, if spans are sent.
    pub(crate) span: Option<RequestSpan>,
    /// The model, as the caller named it.
    pub(crate) model: String,
    /// The framing that a stream has on this path.
    pub(crate) is_llava: bool,
    /// When the request came.
    pub(crate) started: Instant,
    /// When it must be over.
    pub(crate) deadline: Instant,
    /// Limits of each phase.
    pub(crate) timeouts: Arc<Timeouts>,
    /// When the router has no more time.
    pub(crate) over: End,
}

/// What came of an attempt.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// An answer for the caller.
    Answer(Response<Body>),
    /// Another worker may do better. The response is for the caller if none does.
    Again(RetryReason, Option<Response<Body>>),
    /// Time is up.
    TooSlow(&'static str),
}

/// Why an attempt got no first byte.
enum Missed {
    Failed(Failure, RetryReason, String),
    TooSlow(&'static str),
}

/// Tries the worker of `reservation`.
pub(crate) async fn attempt(job: &Job, mut reservation: Reservation, tries: usize) -> Outcome {
    if let Some(span) = &job.span {
        span.sent_to(&reservation.worker().name);
    }
    match first_bytes(job, &reservation, tries).await {
        Ok((head, first)) if is_busy(head.status) => {
            let load = load_of(&head);
            let answered = Answered {
                load,
                complete: true,
                verdict: match head.status {
                    StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => Verdict::Failed,
                    _ => Verdict::Neutral,
                },
            };
            reservation.answered(answered, shell::clock::now());
            let response = match first {
                First::Whole(body) => Some(to_caller(head, Body::full(body), &reservation)),
                First::Stream(..) => None,
            };
            Outcome::Again(RetryReason::Busy, response)
        }
        Ok((head, first)) => Outcome::Answer(commit(job, reservation, head, first)),
        Err(Missed::TooSlow(code)) => Outcome::TooSlow(code),
        Err(Missed::Failed(failure, reason, cause)) => {
            tracing::debug!(worker = reservation.worker().name, cause, "attempt failed");
            reservation.failed(failure, cause, shell::clock::now());
            Outcome::Again(reason, None)
        }
    }
}

enum First {
    Whole(Bytes),
    Stream(Answer, Bytes),
}

async fn first_bytes(
    job: &Job,
    reservation: &Reservation,
    tries: usize,
) -> Result<(response::Parts, First), Missed> {
    let worker = reservation.worker();
    let until = job
        .deadline
        .min(shell::clock::now() + job.timeouts.first_byte_timeout);
    // A worker that closes every connection without an answer gets the request twice, not once
    // for each link that is kept.
    let mut stale = false;
    let answer = loop {
        let (link, fresh) = connection(job, worker, stale).await?;
        let request = to_worker(job, worker, tries);
        match watched(send(link, &worker.links, request), worker, until, job).await? {
            Ok(answer) => break answer,
            // A kept connection was closed as it was used: nobody's fault.
            Err(error) if error.stale && !fresh => stale = true,
            Err(error) => return Err(broken(error.to_string())),
        }
    };
    let (head, mut answer) = answer.into_parts();
    if answer.exact_len().is_some_and(|len| len <= WHOLE) {
        return match watched(answer.collect(), worker, until, job).await? {
            Ok(body) => Ok((head, First::Whole(body))),
            Err(error) => Err(broken(error.to_string())),
        };
    }
    let next = std::future::poll_fn(|cx| answer.poll_data(cx));
    match watched(next, worker, until, job).await? {
        None => Ok((head, First::Whole(Bytes::new()))),
        Some(Ok(data)) => Ok((head, First::Stream(answer, data))),
        Some(Err(error)) => Err(broken(error.to_string())),
    }
}

/// A link to the worker, and whether it is a new one, as it is where `new` asks for it.
async fn connection(job: &Job, worker: &Arc<Worker>, new: bool) -> Result<(Link, bool), Missed> {
    if !new && let Some(link) = worker.links.take_idle() {
        return Ok((link, false));
    }
    match worker.links.connect(job.timeouts.connect_timeout).await {
        Ok(link) => Ok((link, true)),
        Err(error) => Err(Missed::Failed(
            Failure::Connect,
            RetryReason::Connect,
            error.to_string(),
        )),
    }
}

/// Waits for `future`, but no longer than until `until`, or until probes find
/// that nobody is there.
async fn watched<F: Future>(
    future: F,
    worker: &Worker,
    until: Instant,
    job: &Job,
) -> Result<F::Output, Missed> {
    let mut future = pin!(future);
    loop {
        let look = until.min(shell::clock::now() + LOOK);
        if let Ok(output) = tokio::time::timeout_at(look.into(), future.as_mut()).await {
            return Ok(output);
        }
        if worker.is_down() {
            return Err(Missed::Failed(
                Failure::Broken,
                RetryReason::Hung,
                "no first byte, and no answer to probes".to_owned(),
            ));
        }
        let now = shell::clock::now();
        if now >= job.deadline {
            return Err(Missed::TooSlow("request_timeout"));
        }
        if now >= until {
            return Err(Missed::TooSlow("first_byte_timeout"));
        }
    }
}

fn broken(cause: String) -> Missed {
    Missed::Failed(Failure::Broken, RetryReason::Broken, cause)
}

fn to_worker(job: &Job, worker: &Worker, tries: usize) -> Request<Payload> {
    let mut request = Request::new(job.payload.clone());
    *request.method_mut() = Method::POST;
    *request.uri_mut() = job.uri.clone();
    *request.headers_mut() = job.headers.clone();
    let headers = request.headers_mut();
    worker.links.address(headers);
    if tries > 0 {
        headers.insert(
            HeaderName::from_static(ours::ATTEMPT),
            HeaderValue::from(tries),
        );
    }
    request
}

/// What a worker says when another one should be asked.
fn is_busy(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    )
}

fn load_of(head: &response::Parts) -> Option<LoadReport> {
    let value = head.headers.get(ours::LOAD)?;
    serde_json::from_slice(value.as_bytes()).ok()
}

fn commit(
    job: &Job,
    mut reservation: Reservation,
    head: response::Parts,
    first: First,
) -> Response<Body> {
    let now = shell::clock::now();
    let answered = Answered {
        load: load_of(&head),
        complete: matches!(first, First::Whole(_)),
        verdict: match head.status.as_u16() {
            500.. => Verdict::Failed,
            400.. => Verdict::Neutral,
            _ => Verdict::Well,
        },
    };
    reservation.answered(answered, now);
    let meter = &reservation.pool().meter;
    meter
        .first_byte
        .observe(now.saturating_duration_since(job.started));
    let content_type = head
        .headers
        .get(header::CONTENT_TYPE)
        .map(HeaderValue::as_bytes);
    match first {
        First::Whole(bytes) => {
            meter
                .duration
                .observe(now.saturating_duration_since(job.started));
            to_caller(head, Body::full(bytes), &reservation)
        }
        First::Stream(answer, first) => {
            let framing = if head.status == StatusCode::OK {
                Framing::of(content_type, job.is_llava)
            } else {
                Framing::Opaque
            };
            let pace = RelayPace {
                chunk_timeout: job.timeouts.chunk_timeout,
                keep_alive: framing.pause(job.timeouts.keep_alive),
                deadline: job.deadline,
                over: job.over.wait(),
            };
            let mut response = to_caller(head, Body::Full(None), &reservation);
            if framing == Framing::Sse {
                let name = HeaderName::from_static("x-accel-buffering");
                response
                    .headers_mut()
                    .entry(name)
                    .or_insert(HeaderValue::from_static("no"));
            }
            let relay = Relay::new(
                answer,
                reservation,
                Cutter::new(framing),
                first,
                pace,
                Trail {
                    started: job.started,
                    span: job.span.clone(),
                },
            );
            *response.body_mut() = Body::Relay(Box::new(relay));
            response
        }
    }
}

fn to_caller(head: response::Parts, body: Body, reservation: &Reservation) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    headers::towards_caller(response.headers_mut());
    if let Ok(name) = HeaderValue::from_str(&reservation.worker().name) {
        let header = HeaderName::from_static(ours::WORKER);
        response.headers_mut().insert(header, name);
    }
    if is_busy(head.status) && !response.headers().contains_key(header::RETRY_AFTER) {
        let wait = Refusal::busy(reservation.pool().expected_wait());
        wait.write_retry_after(response.headers_mut());
    }
    response
}
