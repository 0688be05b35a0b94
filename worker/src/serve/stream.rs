//! The answer that carries a stream of events.

use std::convert::Infallible;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::HeaderValue;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use protocol::error::{ApiError, ErrorKind};
use protocol::sse;

use super::refusal::Refusal;
use crate::engine::Failure;

/// An event stream that no proxy on the way holds back.
pub(super) fn response(events: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let mut response = Response::new(Body::from_stream(events.map(Ok::<_, Infallible>)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(sse::CONTENT_TYPE));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// The last event of a stream that broke.
#[must_use]
pub(super) fn error_event(failure: Failure) -> Bytes {
    let error = Refusal::from(failure).error;
    let code = error.code.unwrap_or_default();
    sse::event(&ApiError::new(ErrorKind::StreamError, &code, error.message).to_json())
}
