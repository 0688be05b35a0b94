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

/// Attempts after the first.
pub(crate) const MAX_RETRIES: usize = 2;
/// How often a waiting attempt looks whether its worker is still there.
const LOOK: Duration = Duration::from_millis(250);
/// An answer of known length up to this is taken whole before it is passed on, and so is
/// an error: a worker that dies in the middle of it costs a retry, not an error.
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
    /// Whether the answer is to come as it is made.
    pub(crate) streams: bool,
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
    /// Nobody can do better.
    Refused(Refusal),
}

/// Why an attempt got no first byte.
enum Missed {
    Failed(Failure, RetryReason, String),
    Refused(Refusal),
}

/// Tries the worker of `reservation`, after those that were `tried`.
pub(crate) async fn attempt(
    job: &Job,
    mut reservation: Reservation,
    tried: &[Arc<Worker>],
) -> Outcome {
    if let Some(span) = &job.span {
        span.sent_to(&reservation.worker().name);
    }
    let watch = Watch {
        job,
        reservation: &reservation,
        tried,
        until: job
            .deadline
            .min(shell::clock::now() + job.timeouts.first_byte_timeout),
    };
    match first_bytes(&watch).await {
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
        Err(Missed::Refused(refusal)) => Outcome::Refused(refusal),
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

/// What limits the wait for a first byte.
struct Watch<'a> {
    job: &'a Job,
    reservation: &'a Reservation,
    tried: &'a [Arc<Worker>],
    until: Instant,
}

async fn first_bytes(watch: &Watch<'_>) -> Result<(response::Parts, First), Missed> {
    let worker = watch.reservation.worker();
    // A worker that closes every connection without an answer gets the request twice, not once
    // for each link that is kept.
    let mut stale = false;
    let answer = loop {
        let (link, fresh) = connection(watch, stale).await?;
        let request = to_worker(watch.job, worker, watch.tried.len());
        match watch.over(send(link, &worker.links, request)).await? {
            Ok(answer) => break answer,
            // A kept connection was closed as it was used: nobody's fault.
            Err(error) if error.stale && !fresh => stale = true,
            Err(error) => return Err(broken(error.to_string())),
        }
    };
    let (head, mut answer) = answer.into_parts();
    if answer.exact_len().is_some_and(|len| len <= WHOLE) {
        return match watch.over(answer.collect()).await? {
            Ok(body) => Ok((head, First::Whole(body))),
            Err(error) => Err(broken(error.to_string())),
        };
    }
    let mut first = Bytes::new();
    loop {
        let next = std::future::poll_fn(|cx| answer.poll_data(cx));
        match watch.over(next).await? {
            None => return Ok((head, First::Whole(first))),
            Some(Ok(data)) if first.is_empty() => first = data,
            Some(Ok(data)) => first = [first, data].concat().into(),
            Some(Err(error)) => return Err(broken(error.to_string())),
        }
        if head.status.is_success() || first.len() as u64 > WHOLE {
            return Ok((head, First::Stream(answer, first)));
        }
    }
}

/// A link to the worker, and whether it is a new one, as it is where `new` asks for it.
async fn connection(watch: &Watch<'_>, new: bool) -> Result<(Link, bool), Missed> {
    let links = &watch.reservation.worker().links;
    if !new && let Some(link) = links.take_idle(shell::clock::now()) {
        return Ok((link, false));
    }
    let connecting = links.connect(watch.job.timeouts.connect_timeout);
    match watch.over(connecting).await? {
        Ok(link) => Ok((link, true)),
        Err(error) if error.is_ours() => {
            tracing::error!(%error, "no worker can be connected to: raise the limit of open files");
            Err(Missed::Refused(Refusal::out_of_descriptors()))
        }
        Err(error) => Err(Missed::Failed(
            Failure::Connect,
            RetryReason::Connect,
            error.to_string(),
        )),
    }
}

impl Watch<'_> {
    /// Waits for `future`, but no longer than there is time, or until probes find that
    /// nobody is there while somebody is elsewhere.
    async fn over<F: Future>(&self, future: F) -> Result<F::Output, Missed> {
        let mut future = pin!(future);
        loop {
            let look = self.until.min(shell::clock::now() + LOOK);
            if let Ok(output) = tokio::time::timeout_at(look.into(), future.as_mut()).await {
                return Ok(output);
            }
            let now = shell::clock::now();
            if self.should_move(now) {
                return Err(Missed::Failed(
                    Failure::Broken,
                    RetryReason::Hung,
                    "no first byte, and no answer to probes".to_owned(),
                ));
            }
            let late = if now >= self.job.deadline {
                "request_timeout"
            } else if now >= self.until {
                "first_byte_timeout"
            } else {
                continue;
            };
            return Err(Missed::Refused(Refusal::too_slow(late)));
        }
    }

    /// A worker whose probes stall may answer yet, which is better than nothing.
    fn should_move(&self, now: Instant) -> bool {
        let worker = self.reservation.worker();
        worker.is_down()
            && self.tried.len() < MAX_RETRIES
            && self.reservation.pool().has_another(worker, self.tried, now)
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
            if framing != Framing::Opaque {
                // Comments and an error may come between.
                response.headers_mut().remove(header::CONTENT_LENGTH);
            }
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
