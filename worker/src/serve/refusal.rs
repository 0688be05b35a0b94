//! How a request is turned down: a status, the error body that OpenAI's SDKs
//! read, and when to try again. Every code of this process is made here.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, StatusCode};
use protocol::error::{ApiError, ErrorKind};
use protocol::header::RETRY_AFTER_MS;

use crate::engine::Failure;

/// A request that is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The status, before the first byte.
    pub status: StatusCode,
    /// The body.
    pub error: ApiError,
    /// When trying again makes sense.
    pub retry_after: Option<Duration>,
    /// Whether the connection ends with the answer.
    pub close: bool,
}

impl Refusal {
    /// The request is wrong; `param` names the field.
    #[must_use]
    pub(super) fn invalid(code: &str, param: Option<&str>, message: impl Into<String>) -> Self {
        let error = ApiError::new(ErrorKind::InvalidRequestError, code, message);
        Self::of(match param {
            Some(param) => error.at(param),
            None => error,
        })
    }

    /// A field has a value that cannot be.
    #[must_use]
    pub(super) fn value(param: &str, message: impl Into<String>) -> Self {
        Self::invalid("invalid_value", Some(param), message)
    }

    /// Something that this server does not do.
    #[must_use]
    pub(super) fn unsupported(param: &str, message: impl Into<String>) -> Self {
        Self::invalid("unsupported_parameter", Some(param), message)
    }

    /// The body is larger than allowed.
    #[must_use]
    pub(super) fn body_too_large(limit: usize) -> Self {
        Self::invalid(
            "body_too_large",
            None,
            format!("the body exceeds the limit of {limit} bytes"),
        )
        .with_status(StatusCode::PAYLOAD_TOO_LARGE)
        .closing()
    }

    /// The body did not arrive in time.
    #[must_use]
    pub(super) fn body_too_slow() -> Self {
        Self::invalid("body_timeout", None, "the body did not arrive in time")
            .with_status(StatusCode::REQUEST_TIMEOUT)
            .closing()
    }

    /// No such model here.
    #[must_use]
    pub(super) fn unknown_model(name: &str) -> Self {
        let name: String = name.chars().take(100).collect();
        let message = format!("the model `{name}` is not served here");
        Self::of(ApiError::new(ErrorKind::NotFoundError, "model_not_found", message).at("model"))
    }

    /// No such path.
    #[must_use]
    pub(super) fn unknown_path() -> Self {
        Self::of(ApiError::new(
            ErrorKind::NotFoundError,
            "not_found",
            "there is nothing at this path",
        ))
    }

    /// The path takes another method.
    #[must_use]
    pub(super) fn wrong_method() -> Self {
        Self::invalid("method_not_allowed", None, "this path takes another method")
            .with_status(StatusCode::METHOD_NOT_ALLOWED)
    }

    /// The queue has no room.
    #[must_use]
    pub(super) fn queue_full() -> Self {
        let message = "the queue of this worker is full";
        Self::of(ApiError::new(
            ErrorKind::RateLimitError,
            "queue_full",
            message,
        ))
        .retry_in(Duration::from_secs(1))
    }

    /// Other requests hold all the bytes that may be held.
    #[must_use]
    pub(super) fn buffers_full() -> Self {
        let message = "this worker holds as many request bytes as it may";
        Self::of(ApiError::new(
            ErrorKind::ServiceUnavailableError,
            "buffers_full",
            message,
        ))
        .retry_in(Duration::from_secs(1))
    }

    /// The worker is stopping.
    #[must_use]
    pub(super) fn draining() -> Self {
        let message = "this worker is stopping and takes no new requests";
        Self::of(ApiError::new(
            ErrorKind::ServiceUnavailableError,
            "draining",
            message,
        ))
        .retry_in(Duration::from_secs(1))
        .closing()
    }

    /// A fault of ours; what happened is in the log.
    #[must_use]
    pub(super) fn internal() -> Self {
        let message = "the worker failed on this request";
        Self::of(ApiError::new(
            ErrorKind::ServerError,
            "internal_error",
            message,
        ))
    }

    /// The class decides the status.
    #[must_use]
    pub(super) fn of(error: ApiError) -> Self {
        Self {
            status: StatusCode::from_u16(error.kind.status())
                .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            error,
            retry_after: None,
            close: false,
        }
    }

    fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    fn retry_in(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    /// The code, for counting.
    #[must_use]
    pub(super) fn code(&self) -> &str {
        self.error.code.as_deref().unwrap_or("unknown")
    }

    /// Puts the headers of a refusal on an answer, whatever its body.
    pub(super) fn mark(&self, response: &mut Response) {
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        if let Some(after) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
            let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
            headers.insert(RETRY_AFTER_MS, HeaderValue::from(millis));
        }
        if self.close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        self.note(response);
    }

    /// Notes on an answer, for metrics and logs, that it is a refusal.
    pub(super) fn note(&self, response: &mut Response) {
        response
            .extensions_mut()
            .insert(RefusedWith(self.code().to_owned()));
    }
}

/// The code of a refusal, left on the response for those who count.
#[derive(Clone, Debug)]
pub(super) struct RefusedWith(pub String);

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let message = failure.to_string();
        match failure {
            Failure::Expired(_) => Self::of(ApiError::new(
                ErrorKind::ServiceUnavailableError,
                "queue_timeout",
                message,
            ))
            .retry_in(Duration::from_secs(2)),
            Failure::Stopping => Self::draining(),
            Failure::Model => Self::of(ApiError::new(
                ErrorKind::ServerError,
                "model_error",
                message,
            )),
            Failure::Gone => Self::of(ApiError::new(
                ErrorKind::ServiceUnavailableError,
                "engine_stopped",
                message,
            ))
            .retry_in(Duration::from_secs(1)),
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = Response::new(self.error.to_json().into());
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(CONTENT_TYPE, json);
        self.mark(&mut response);
        response
    }
}
