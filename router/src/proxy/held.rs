//! A stream that has begun before its request found a worker or got its first
//! byte: comments keep the connection open meanwhile, and what goes wrong now is
//! told by an error frame, as the status is already sent.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Response, StatusCode};
use protocol::error::{ApiError, ErrorBody, ErrorKind};
use protocol::llava::Code;
use tokio::time::Sleep;

use crate::proxy::body::Body;
use crate::proxy::cut::Framing;
use crate::refusal::Refusal;

/// What a request comes to.
pub(crate) type Work = Pin<Box<dyn Future<Output = Result<Response<Body>, Refusal>> + Send>>;

/// A stream that has begun.
pub(crate) struct Held {
    work: Work,
    framing: Framing,
    every: Duration,
    deadline: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Held {
    /// Begins a stream, with a keep-alive at once and then `every` so often. The work
    /// itself ends by `deadline`.
    pub(crate) fn new(work: Work, framing: Framing, every: Duration, deadline: Instant) -> Self {
        let now = shell::clock::now();
        Self {
            work,
            framing,
            every,
            deadline,
            timer: Box::pin(tokio::time::sleep_until(now.into())),
        }
    }

    /// When the request must be over.
    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// The next keep-alive, or the body that takes over.
    pub(crate) fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Body>> {
        if let Poll::Ready(done) = self.work.as_mut().poll(cx) {
            return Poll::Ready(Err(self.take_over(done)));
        }
        ready!(self.timer.as_mut().poll(cx));
        let next = shell::clock::now() + self.every;
        self.timer.as_mut().reset(next.into());
        Poll::Ready(Ok(self.framing.keep_alive().unwrap_or_default()))
    }

    fn take_over(&self, done: Result<Response<Body>, Refusal>) -> Body {
        let (error, code) = match done {
            Ok(response) => {
                let failed = response.status() != StatusCode::OK;
                match response.into_body() {
                    Body::Full(text) if failed => (worker_error(text), Code::Worker),
                    // Longer than an event should be.
                    Body::Relay(relay) if failed => {
                        relay.stop();
                        (worker_error(None), Code::Worker)
                    }
                    body => return body,
                }
            }
            Err(refusal) => {
                let code = refusal.llava_code();
                (refusal.error, code)
            }
        };
        Body::Full(self.framing.error(&error, code))
    }
}

fn worker_error(text: Option<Bytes>) -> ApiError {
    text.and_then(|text| serde_json::from_slice::<ErrorBody>(&text).ok())
        .map_or_else(
            || ApiError::new(ErrorKind::ServerError, "worker_error", "the worker failed"),
            |body| body.error,
        )
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").finish_non_exhaustive()
    }
}
