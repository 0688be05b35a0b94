//! Every way to say no, with its status, its code for programs, its sentence for
//! people, and when to come back.

use std::time::Duration;

use http::header::{self, HeaderMap, HeaderValue};
use http::{HeaderName, Response, StatusCode};
use protocol::error::{ApiError, ErrorKind};
use protocol::header as ours;
use protocol::llava::Code;

use crate::metrics::meter::{CALLER_LEFT, ShedReason};
use crate::proxy::body::Body;
use crate::request::intake::IntakeError;

/// The longest `Retry-After`; OpenAI's SDKs give up above 120 s.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// What ends a request for which a router that goes down has no more time.
pub(crate) const DRAINING: &str = "draining";

/// A refused request.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    /// The status.
    pub(crate) status: StatusCode,
    /// The body.
    pub(crate) error: ApiError,
    /// When it is worth coming back.
    pub(crate) retry_after: Option<Duration>,
    /// Whether the connection cannot be used again.
    pub(crate) close: bool,
}

impl Refusal {
    fn new(status: StatusCode, kind: ErrorKind, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            error: ApiError::new(kind, code, message),
            retry_after: None,
            close: false,
        }
    }

    fn later(mut self, retry_after: Duration) -> Self {
        self.retry_after = Some(retry_after.clamp(Duration::from_secs(1), LONGEST_WAIT));
        self
    }

    /// The path does not exist.
    pub(crate) fn unknown_path() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            ErrorKind::NotFoundError,
            "unknown_path",
            "no such path; see /v1/models, /v1/chat/completions and /v1/completions",
        )
    }

    /// The path wants another method.
    pub(crate) fn wrong_method(allowed: &'static str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            ErrorKind::InvalidRequestError,
            "method_not_allowed",
            format!("this path takes {allowed}"),
        )
    }

    /// What replaced an endpoint of LLaVA's controller.
    pub(crate) fn gone(message: &'static str) -> Self {
        Self::new(
            StatusCode::GONE,
            ErrorKind::InvalidRequestError,
            "gone",
            message,
        )
    }

    /// No key, or a wrong one.
    pub(crate) fn wrong_key() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            ErrorKind::AuthenticationError,
            "invalid_api_key",
            "send a valid API key as `Authorization: Bearer KEY`",
        )
    }

    /// The request does not say which model it wants.
    pub(crate) fn missing_model() -> Self {
        let mut refusal = Self::new(
            StatusCode::BAD_REQUEST,
            ErrorKind::InvalidRequestError,
            "missing_model",
            "the field `model` is missing or no string; GET /v1/models lists the models",
        );
        refusal.error = refusal.error.at("model");
        refusal
    }

    /// Nobody serves that model.
    pub(crate) fn unknown_model(name: &str) -> Self {
        let short: String = name.chars().take(100).collect();
        let mut refusal = Self::new(
            StatusCode::NOT_FOUND,
            ErrorKind::NotFoundError,
            "model_not_found",
            format!("no model `{short}`; GET /v1/models lists the models"),
        );
        refusal.error = refusal.error.at("model");
        refusal
    }

    /// The body was not taken in.
    pub(crate) fn intake(error: &IntakeError) -> Self {
        let (status, kind, code) = match error {
            IntakeError::TooLarge { .. } => (
                StatusCode::PAYLOAD_TOO_LARGE,
                ErrorKind::InvalidRequestError,
                "body_too_large",
            ),
            IntakeError::BuffersFull => (
                StatusCode::SERVICE_UNAVAILABLE,
                ErrorKind::ServiceUnavailableError,
                "buffers_full",
            ),
            IntakeError::Late(_) => (
                StatusCode::REQUEST_TIMEOUT,
                ErrorKind::InvalidRequestError,
                "body_timeout",
            ),
            // Nobody is there to read it; it is for the counts.
            IntakeError::Aborted => (
                StatusCode::from_u16(CALLER_LEFT).unwrap_or(StatusCode::BAD_REQUEST),
                ErrorKind::InvalidRequestError,
                "body_aborted",
            ),
            IntakeError::Misframed => (
                StatusCode::BAD_REQUEST,
                ErrorKind::InvalidRequestError,
                "body_misframed",
            ),
            IntakeError::Malformed(_) => (
                StatusCode::BAD_REQUEST,
                ErrorKind::InvalidRequestError,
                "invalid_json",
            ),
        };
        let mut refusal = Self::new(status, kind, code, error.to_string());
        refusal.close = !matches!(error, IntakeError::Malformed(_));
        match error {
            IntakeError::BuffersFull => refusal.later(Duration::from_secs(1)),
            _ => refusal,
        }
    }

    /// All slots are taken and the waiting room is full, or too slow.
    pub(crate) fn busy(retry_after: Duration) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            ErrorKind::RateLimitError,
            ShedReason::QueueFull.code(),
            "all workers of this model are busy and the queue is full; try again later",
        )
        .later(retry_after)
    }

    /// No slot became free in time.
    pub(crate) fn queue_timeout(retry_after: Duration) -> Self {
        Self::unavailable(
            ShedReason::QueueTimeout,
            "no worker of this model became free in time; try again later",
            retry_after,
        )
    }

    /// Too many wait for the model's first worker.
    pub(crate) fn hold_full() -> Self {
        Self::unavailable(
            ShedReason::HoldFull,
            "the model is starting and too many requests wait for it; try again later",
            Duration::from_secs(10),
        )
    }

    /// The router goes down, and has no more time for those who still wait.
    pub(crate) fn draining() -> Self {
        let mut refusal = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::ServiceUnavailableError,
            DRAINING,
            "this router is going down; send the request again",
        )
        .later(Duration::from_secs(1));
        refusal.close = true;
        refusal
    }

    /// The bodies of those that wait for the model are as large as they may be.
    pub(crate) fn bytes_full(retry_after: Duration) -> Self {
        Self::unavailable(
            ShedReason::BytesFull,
            "the requests that wait for this model hold as many bytes as they may; try again later",
            retry_after,
        )
    }

    /// The model's first worker did not come in time.
    pub(crate) fn no_worker() -> Self {
        Self::unavailable(
            ShedReason::NoWorker,
            "the model has no ready worker; see the conditions of its LlavaDeployment",
            Duration::from_secs(10),
        )
    }

    /// Every worker that was tried failed.
    pub(crate) fn workers_failed() -> Self {
        let mut refusal = Self::new(
            StatusCode::BAD_GATEWAY,
            ErrorKind::ServiceUnavailableError,
            "worker_unreachable",
            "the workers of this model could not be reached; try again later",
        );
        refusal.retry_after = Some(Duration::from_secs(1));
        refusal
    }

    /// This process may open no more files, and so no connection to a worker.
    pub(crate) fn out_of_descriptors() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::ServiceUnavailableError,
            "router_overloaded",
            "the router has too many connections open; try again later",
        )
        .later(Duration::from_secs(1))
    }

    /// The worker took too long.
    pub(crate) fn too_slow(code: &'static str) -> Self {
        Self::new(
            StatusCode::GATEWAY_TIMEOUT,
            ErrorKind::ServerError,
            code,
            "the worker did not answer within the time limit",
        )
    }

    /// A stream broke after its first byte.
    pub(crate) fn stream_broken(code: &'static str, message: &'static str) -> ApiError {
        ApiError::new(ErrorKind::StreamError, code, message)
    }

    fn unavailable(reason: ShedReason, message: &str, retry_after: Duration) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            ErrorKind::ServiceUnavailableError,
            reason.code(),
            message,
        )
        .later(retry_after)
    }

    /// The answer with the OpenAI-shaped body.
    pub(crate) fn into_response(self) -> Response<Body> {
        let body = Body::full(self.error.to_json());
        self.respond(body, "application/json")
    }

    /// `error_code` for LLaVA's clients.
    pub(crate) fn llava_code(&self) -> Code {
        match self.status {
            StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => Code::Unreachable,
            _ => Code::NoWorker,
        }
    }

    /// Says in `headers` when to come back.
    pub(crate) fn write_retry_after(&self, headers: &mut HeaderMap) {
        if let Some(wait) = self.retry_after {
            let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            let name = HeaderName::from_static(ours::RETRY_AFTER_MS);
            headers.insert(name, HeaderValue::from(millis));
        }
    }

    /// The answer with another body.
    pub(crate) fn respond(&self, body: Body, content_type: &'static str) -> Response<Body> {
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        self.write_retry_after(headers);
        if self.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
