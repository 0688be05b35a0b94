//! The head of a request as it is written, and the head of an answer as it is read
//! (RFC 9112).

use std::io::Write as _;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, response};

use crate::request::intake::Payload;
use crate::upstream::decode::Extent;

/// Headers of an answer at most.
const MAX_HEADERS: usize = 100;
/// The head of an answer at most, bytes.
const MAX_HEAD: usize = 64 * 1024;
/// A usual header, name and value, bytes.
const USUAL_LINE: usize = 48;

/// The head of an answer.
#[derive(Debug)]
pub(super) struct Head {
    /// Status and headers.
    pub(super) parts: response::Parts,
    /// How the end of the body is told.
    pub(super) extent: Extent,
    /// Whether the connection may be used again after the body.
    pub(super) keeps: bool,
}

/// The head of an answer that is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadHead {
    /// Not HTTP/1.
    #[error("the head does not read: {0}")]
    Parse(#[from] httparse::Error),
    /// A header or a status outside of what is allowed.
    #[error("the head does not read: {0}")]
    Value(#[from] http::Error),
    /// No end in sight.
    #[error("the head is longer than {MAX_HEAD} bytes")]
    TooLong,
    /// Two lengths, or one that is no number.
    #[error("the length of the body is unclear")]
    Length,
    /// It switches to a protocol that nobody asked for.
    #[error("it switches to another protocol")]
    Switches,
}

/// Writes the head of `request`, whose body is as long as it says.
pub(super) fn write(request: &Request<Payload>) -> Vec<u8> {
    let headers = request.headers();
    let path = request.uri().path_and_query().map_or("/", |p| p.as_str());
    let mut out = Vec::with_capacity(path.len() + USUAL_LINE * (headers.len() + 3));
    out.extend_from_slice(request.method().as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(path.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    for (name, value) in headers {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    if request.method() == Method::POST {
        // Writing to memory does not fail.
        let _ = write!(out, "content-length: {}\r\n", request.body().len());
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// Takes the head of the answer from the front of `read`, once it is there whole.
/// Heads that only say that more will come (1xx) are read over.
pub(super) fn read(read: &mut BytesMut) -> Result<Option<Head>, BadHead> {
    loop {
        let mut lines = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut answer = httparse::Response::new(&mut lines);
        let length = match answer.parse(read)? {
            httparse::Status::Complete(length) => length,
            httparse::Status::Partial if read.len() < MAX_HEAD => return Ok(None),
            httparse::Status::Partial => return Err(BadHead::TooLong),
        };
        let status = StatusCode::from_u16(answer.code.unwrap_or(0)).map_err(http::Error::from)?;
        let is_new = answer.version == Some(1);
        // Where values lie, as the bytes themselves are about to change hands.
        let place = |value: &[u8]| match value {
            [] => 0..0,
            _ => {
                let start = value.as_ptr().addr() - read.as_ptr().addr();
                start..start + value.len()
            }
        };
        let name = |line: &httparse::Header<'_>| {
            HeaderName::from_bytes(line.name.as_bytes()).map_err(http::Error::from)
        };
        let places: Vec<(HeaderName, Range<usize>)> = answer
            .headers
            .iter()
            .map(|line| Ok((name(line)?, place(line.value))))
            .collect::<Result<_, http::Error>>()?;
        let bytes = read.split_to(length).freeze();
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(BadHead::Switches);
        }
        if !status.is_informational() {
            return head(status, is_new, &bytes, places).map(Some);
        }
    }
}

fn head(
    status: StatusCode,
    is_new: bool,
    bytes: &Bytes,
    places: Vec<(HeaderName, Range<usize>)>,
) -> Result<Head, BadHead> {
    let mut parts = Response::new(()).into_parts().0;
    parts.status = status;
    parts.headers.reserve(places.len());
    for (name, place) in places {
        let value =
            HeaderValue::from_maybe_shared(bytes.slice(place)).map_err(http::Error::from)?;
        parts.headers.append(name, value);
    }
    let extent = extent(&mut parts)?;
    let says = |token| has_token(&parts.headers, header::CONNECTION, token);
    let keeps = match is_new {
        true => !says("close"),
        false => says("keep-alive"),
    };
    Ok(Head {
        keeps: keeps && extent != Extent::UntilClose,
        extent,
        parts,
    })
}

/// How the end of the body is told (RFC 9112, section 6.3).
fn extent(parts: &mut response::Parts) -> Result<Extent, BadHead> {
    if matches!(
        parts.status,
        StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED
    ) {
        return Ok(Extent::Length(0));
    }
    if parts.headers.contains_key(header::TRANSFER_ENCODING) {
        // Chunks come before a length, and a reader after us must not see both.
        parts.headers.remove(header::CONTENT_LENGTH);
        let chunked = has_token(&parts.headers, header::TRANSFER_ENCODING, "chunked");
        return Ok(match chunked {
            true => Extent::Chunked,
            false => Extent::UntilClose,
        });
    }
    let mut length = None;
    for value in parts.headers.get_all(header::CONTENT_LENGTH) {
        let one = length_of(value.as_bytes()).ok_or(BadHead::Length)?;
        if length.is_some_and(|length| length != one) {
            return Err(BadHead::Length);
        }
        length = Some(one);
    }
    Ok(length.map_or(Extent::UntilClose, Extent::Length))
}

/// Digits and nothing else; a sign or a list is no length.
fn length_of(value: &[u8]) -> Option<u64> {
    let digits = value.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(value).ok().filter(|_| digits)?;
    text.parse().ok()
}

fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|one| one.trim().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<Head>, BadHead> {
        read(&mut BytesMut::from(text))
    }

    #[test]
    fn the_end_of_the_body_and_of_the_connection_are_told_by_the_head() {
        let new = "HTTP/1.1 200 OK\r\n";
        for (text, extent, keeps) in [
            (
                format!("{new}content-length: 5\r\n\r\n"),
                Extent::Length(5),
                true,
            ),
            (
                format!("{new}Transfer-Encoding: gzip, Chunked\r\n\r\n"),
                Extent::Chunked,
                true,
            ),
            (
                format!("{new}content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n"),
                Extent::Chunked,
                true,
            ),
            (format!("{new}\r\n"), Extent::UntilClose, false),
            (
                format!("{new}connection: x, Close\r\ncontent-length: 0\r\n\r\n"),
                Extent::Length(0),
                false,
            ),
            (
                "HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\n".to_owned(),
                Extent::Length(1),
                false,
            ),
            (
                "HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 1\r\n\r\n".to_owned(),
                Extent::Length(1),
                true,
            ),
            (
                "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
                Extent::Length(0),
                true,
            ),
        ] {
            let head = parse(&text).unwrap().unwrap();
            assert_eq!((head.extent, head.keeps), (extent, keeps), "{text}");
            let both = head.parts.headers.contains_key("content-length")
                && head.parts.headers.contains_key("transfer-encoding");
            assert!(!both, "{text}");
        }
    }

    #[test]
    fn a_head_comes_in_pieces_and_after_those_that_only_announce_it() {
        let text = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n\
            HTTP/1.1 429 Slow Down\r\nx: 1\r\nx: 2\r\ncontent-length: 2\r\n\r\nok";
        let mut so_far = BytesMut::new();
        let mut heads = Vec::new();
        for byte in text.bytes() {
            so_far.extend_from_slice(&[byte]);
            if heads.is_empty() {
                heads.extend(read(&mut so_far).unwrap());
            }
        }
        assert_eq!(heads[0].parts.status, 429);
        let values: Vec<_> = heads[0].parts.headers.get_all("x").iter().collect();
        assert_eq!(values, ["1", "2"]);
        assert_eq!(&so_far[..], b"ok");
    }

    #[test]
    fn heads_that_are_none_are_refused() {
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(101));
        let long = format!("HTTP/1.1 200 OK\r\na: {}", "x".repeat(MAX_HEAD));
        for text in [
            "SSH-2.0-OpenSSH\r\n",
            "HTTP/1.1 099 Odd\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: +1\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: \r\n\r\n",
            &many,
            &long,
        ] {
            parse(text).unwrap_err();
        }
    }

    #[test]
    fn a_request_is_written_with_its_length() {
        let mut request = Request::new(Payload::empty());
        *request.uri_mut() = http::Uri::from_static("/v1/load?x=1");
        request
            .headers_mut()
            .insert("host", HeaderValue::from_static("w:1"));
        assert_eq!(
            write(&request),
            b"GET /v1/load?x=1 HTTP/1.1\r\nhost: w:1\r\n\r\n"
        );
        *request.method_mut() = Method::POST;
        let text = String::from_utf8(write(&request)).unwrap();
        assert!(text.ends_with("\r\ncontent-length: 0\r\n\r\n"));
    }
}
