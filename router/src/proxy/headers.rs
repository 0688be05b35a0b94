//! Which headers travel. What belongs to one connection stays on it (RFC 9110,
//! section 7.6.1); the caller's key is for us and goes no further; a load report
//! is for us and comes no further.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use protocol::header as ours;
use rand::Rng as _;

const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];
const NOT_FOR_WORKERS: [HeaderName; 5] = [
    header::HOST,
    header::AUTHORIZATION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::PROXY_AUTHORIZATION,
];
const MAX_ID: usize = 128;

/// Makes a caller's headers those of the request to a worker.
pub(crate) fn towards_worker(headers: &mut HeaderMap, id: &HeaderValue) {
    strip_hop_by_hop(headers);
    for name in &NOT_FOR_WORKERS {
        headers.remove(name);
    }
    headers.remove(ours::LOAD);
    headers.insert(HeaderName::from_static(ours::REQUEST_ID), id.clone());
}

/// Makes a worker's headers those of the answer to a caller.
pub(crate) fn towards_caller(headers: &mut HeaderMap) {
    strip_hop_by_hop(headers);
    headers.remove(ours::LOAD);
}

/// The caller's request id if it is sane, else a new one.
pub(crate) fn request_id(headers: &HeaderMap) -> HeaderValue {
    let sane = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        (1..=MAX_ID).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    };
    headers
        .get(ours::REQUEST_ID)
        .filter(sane)
        .cloned()
        .unwrap_or_else(new_id)
}

fn new_id() -> HeaderValue {
    let id = format!("{:032x}", rand::rng().random::<u128>());
    HeaderValue::try_from(id).unwrap_or_else(|_| HeaderValue::from_static("none"))
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|&(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect()
    }

    #[test]
    fn what_belongs_to_a_connection_and_the_key_stay_here() {
        let mut map = headers(&[
            ("connection", "close, x-mine"),
            ("x-mine", "1"),
            ("transfer-encoding", "chunked"),
            ("authorization", "Bearer k"),
            ("host", "router"),
            ("traceparent", "00-1-2-01"),
            ("x-llava-load", "{}"),
        ]);
        towards_worker(&mut map, &HeaderValue::from_static("id"));
        assert_eq!(
            map,
            headers(&[("traceparent", "00-1-2-01"), ("x-request-id", "id")])
        );
    }

    #[test]
    fn a_sane_id_is_kept_and_others_are_replaced() {
        assert_eq!(request_id(&headers(&[("x-request-id", "abc")])), "abc");
        for bad in ["", "a b", "\u{7f}"] {
            let Ok(value) = HeaderValue::from_str(bad) else {
                continue;
            };
            let mut map = HeaderMap::new();
            map.insert("x-request-id", value);
            assert_eq!(request_id(&map).len(), 32);
        }
    }
}
