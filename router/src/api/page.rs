//! The web page: three static files within the binary. Nothing comes from
//! elsewhere, and the policy says so.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{HeaderName, Response};

use crate::proxy::body::Body;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

/// A file of the page.
struct File {
    path: &'static str,
    kind: &'static str,
    text: &'static str,
}

const FILES: [File; 3] = [
    File {
        path: "/",
        kind: "text/html; charset=utf-8",
        text: include_str!("../../ui/index.html"),
    },
    File {
        path: "/ui/page.css",
        kind: "text/css; charset=utf-8",
        text: include_str!("../../ui/page.css"),
    },
    File {
        path: "/ui/page.js",
        kind: "text/javascript; charset=utf-8",
        text: include_str!("../../ui/page.js"),
    },
];

/// The file at `path`, if it is one of the page's.
pub(crate) fn file(path: &str) -> Option<Response<Body>> {
    let file = FILES.iter().find(|file| file.path == path)?;
    let mut response = Response::new(Body::full(Bytes::from_static(file.text.as_bytes())));
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, file.kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Some(response)
}
