//! Reads a request's body within bounds of size and time.

use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, EXPECT};
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use memchr::memchr2;
use serde::de::DeserializeOwned;

use super::buffers::Share;
use super::limits::LimitArgs;
use super::refusal::Refusal;

/// Values in the JSON of one body. As a part of a chat each takes some hundred bytes, however short it is written.
const MOST_VALUES: usize = 1 << 18;
/// How much is read and thrown away of a body that is refused, so that its client, still sending, comes to read why.
const DISCARD: usize = 64 << 20;
/// How long that may take.
const LINGER: Duration = Duration::from_secs(10);

/// The whole body, in `share` of the memory for all.
///
/// # Errors
/// 413 when it is too long, 408 when it comes too slowly, 400 when it breaks off, 503 when there is no memory for it.
pub(super) async fn read(
    headers: &HeaderMap,
    mut body: Body,
    limits: &LimitArgs,
    share: &mut Share,
) -> Result<Bytes, Refusal> {
    let limit = limits.max_body_bytes;
    let announced = headers
        .get(CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|length| length > limit) {
        leave_unread(headers, body).await;
        return Err(Refusal::body_too_large(limit));
    }
    let whole = collect(&mut body, limit, limits.body_stall_timeout, share);
    let whole = tokio::time::timeout(limits.body_timeout, whole).await;
    let whole = whole.unwrap_or_else(|_| Err(Refusal::body_too_slow()));
    // Who was too slow is not waited for again.
    if let Err(refusal) = &whole
        && refusal.status != StatusCode::REQUEST_TIMEOUT
    {
        discard(body).await;
    }
    whole
}

/// Sees that the client of a body that is refused before it is read comes to read why: while it still sends, closing
/// the connection resets it, and the answer is lost.
pub(super) async fn leave_unread(headers: &HeaderMap, body: Body) {
    // Who asks first sends nothing until it is told to.
    if !headers.contains_key(EXPECT) {
        discard(body).await;
    }
}

async fn discard(mut body: Body) {
    let reading = async {
        let mut left = DISCARD;
        while let Some(Ok(frame)) = body.frame().await {
            let came = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(came) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    // Who sends for longer has to do without.
    let _ = tokio::time::timeout(LINGER, reading).await;
}

async fn collect(
    body: &mut Body,
    limit: usize,
    patience: Duration,
    share: &mut Share,
) -> Result<Bytes, Refusal> {
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
            share.grow(data.len())?;
            bytes.extend_from_slice(&data);
        }
    }
}

/// A body as JSON of this form.
///
/// # Errors
/// 400 that names the field at fault, or the place where the text is no JSON, or says that it has too many values.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    if has_more_values(bytes, MOST_VALUES) {
        let message = format!("the body has more than {MOST_VALUES} values");
        return Err(Refusal::invalid("too_many_values", None, message));
    }
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

/// Whether a JSON text has more than `most` values, but for the few that begin lists and objects: every other one
/// comes behind a comma. Cheaper by far than what reading them takes.
fn has_more_values(json: &[u8], most: usize) -> bool {
    let mut values = 0;
    let mut rest = json;
    while let Some(at) = memchr2(b'"', b',', rest) {
        if rest[at] == b'"' {
            rest = behind_string(&rest[at + 1..]);
            continue;
        }
        rest = &rest[at + 1..];
        values += 1;
        if values > most {
            return true;
        }
    }
    false
}

/// What follows the string whose first quote has been read.
fn behind_string(mut rest: &[u8]) -> &[u8] {
    while let Some(at) = memchr2(b'"', b'\\', rest) {
        if rest[at] == b'"' {
            return &rest[at + 1..];
        }
        rest = rest.get(at + 2..).unwrap_or_default();
    }
    &[]
}

fn shortened(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use protocol::openai::{ChatRequest, Options};

    use super::*;

    #[test]
    fn values_are_counted_and_commas_in_texts_are_not() {
        let several = br#"{"a,b": ["x,\",\\", 1, {"c": ",,,"}], "d": "\\", "e": null}"#;
        assert!(has_more_values(several, 3));
        assert!(!has_more_values(several, 4));
        for broken in [&b"\"abc"[..], b"\"\\", b"", b"\""] {
            assert!(!has_more_values(broken, 0));
        }
    }

    #[test]
    fn a_body_of_values_beyond_number_is_refused_before_it_is_read() {
        let ones = |count: usize| format!(r#"{{"content": [{}1]}}"#, "1,".repeat(count));
        assert!(parse::<Options>(ones(MOST_VALUES).as_bytes()).is_ok());
        let refusal = parse::<Options>(ones(MOST_VALUES + 1).as_bytes()).unwrap_err();
        assert_eq!(refusal.code(), "too_many_values");
    }

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
