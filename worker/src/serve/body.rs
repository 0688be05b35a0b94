//! Reads a request's body within bounds of size and time.

use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use super::limits::LimitArgs;
use super::refusal::Refusal;

/// The whole body.
///
/// # Errors
/// 413 when it is too long, 408 when it comes too slowly, 400 when it breaks off.
pub(super) async fn read(
    headers: &HeaderMap,
    body: Body,
    limits: &LimitArgs,
) -> Result<Bytes, Refusal> {
    let limit = limits.max_body_bytes;
    let announced = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) {
        return Err(Refusal::body_too_large(limit));
    }
    tokio::time::timeout(
        limits.body_timeout,
        collect(body, limit, limits.body_stall_timeout),
    )
    .await
    .unwrap_or_else(|_| Err(Refusal::body_too_slow()))
}

async fn collect(mut body: Body, limit: usize, patience: Duration) -> Result<Bytes, Refusal> {
    let mut bytes = BytesMut::new();
    loop {
        let Ok(frame) = tokio::time::timeout(patience, body.frame()).await else {
            return Err(Refusal::body_too_slow());
        };
        let Some(frame) = frame else {
            return Ok(bytes.freeze());
        };
        let frame =
            frame.map_err(|_| Refusal::invalid("body_broken", None, "the body breaks off"))?;
        if let Ok(data) = frame.into_data() {
            if bytes.len() + data.len() > limit {
                return Err(Refusal::body_too_large(limit));
            }
            bytes.extend_from_slice(&data);
        }
    }
}

/// A body as JSON of this form.
///
/// # Errors
/// 400 that names the field at fault, or the place where the text is no JSON.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.inner();
        if inner.is_data() {
            // serde's text quotes the value; where it stands is enough.
            let text = inner.to_string();
            let text = text.split(" at line ").next().unwrap_or_default();
            Refusal::value(&path, format!("`{path}`: {}", shortened(text)))
        } else {
            let (line, column) = (inner.line(), inner.column());
            Refusal::invalid(
                "invalid_json",
                None,
                format!("the body is not JSON: line {line}, column {column}"),
            )
        }
    })?;
    json.end().map_err(|_| {
        Refusal::invalid(
            "invalid_json",
            None,
            "something follows the JSON in the body",
        )
    })?;
    Ok(value)
}

fn shortened(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use protocol::openai::{ChatRequest, Options};

    use super::*;

    #[test]
    fn a_wrong_field_is_named() {
        let refusal = parse::<Options>(br#"{"temperature": "hot"}"#).unwrap_err();
        assert_eq!(refusal.error.param.as_deref(), Some("temperature"));
        let refusal = parse::<ChatRequest>(br#"{"messages": [{"role": 3}]}"#).unwrap_err();
        assert_eq!(refusal.error.param.as_deref(), Some("messages[0].role"));
        assert_eq!(parse::<Options>(b"{").unwrap_err().code(), "invalid_json");
        assert_eq!(
            parse::<Options>(b"{} {}").unwrap_err().code(),
            "invalid_json"
        );
    }
}
