//! Where a file's bytes come from: an HTTP server, or an object store.

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore};
use reqwest::header::{AUTHORIZATION, CONTENT_RANGE, RANGE};
use reqwest::{Client, Response, StatusCode};

use super::FetchError;

/// A source of bytes.
pub(super) enum Origin<'a> {
    Http {
        client: &'a Client,
        token: Option<&'a str>,
    },
    Object {
        store: &'a dyn ObjectStore,
        path: Path,
        /// All ranges are of this version of the object.
        version: Option<String>,
    },
}

/// A range of a file, or all of it from a server without ranges.
pub(super) struct Answer {
    /// Bytes of the whole file, where this is a range.
    pub(super) total: Option<u64>,
    pub(super) body: BoxStream<'static, Result<Bytes, FetchError>>,
}

impl Origin<'_> {
    /// Asks for the bytes from `start` to `end`, both included.
    pub(super) async fn ask(&self, url: &str, start: u64, end: u64) -> Result<Answer, FetchError> {
        match self {
            Self::Http { client, token } => http(client, *token, url, start, end).await,
            Self::Object {
                store,
                path,
                version,
            } => {
                let options = GetOptions {
                    range: Some(GetRange::Bounded(start..end + 1)),
                    if_match: version.clone(),
                    ..GetOptions::default()
                };
                let failed = FetchError::in_store(url);
                let found = store.get_opts(path, options).await.map_err(&failed)?;
                Ok(Answer {
                    total: Some(found.meta.size),
                    body: found
                        .into_stream()
                        .map(move |bytes| bytes.map_err(&failed))
                        .boxed(),
                })
            }
        }
    }
}

async fn http(
    client: &Client,
    token: Option<&str>,
    url: &str,
    start: u64,
    end: u64,
) -> Result<Answer, FetchError> {
    let failed = {
        let url = url.to_owned();
        move |source| FetchError::Request {
            url: url.clone(),
            source,
        }
    };
    let mut request = client
        .get(url)
        .header(RANGE, format!("bytes={start}-{end}"));
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let answer = request.send().await.map_err(&failed)?;
    if start == 0 && answer.status() == StatusCode::RANGE_NOT_SATISFIABLE {
        // Only an empty file has no range that begins with its first byte (RFC 9110, 14.1.2).
        return Ok(Answer {
            total: None,
            body: futures::stream::empty().boxed(),
        });
    }
    if !answer.status().is_success() {
        return Err(FetchError::Status {
            url: url.to_owned(),
            status: answer.status().as_u16(),
        });
    }
    let ranged = answer.status() == StatusCode::PARTIAL_CONTENT;
    Ok(Answer {
        total: total_of(&answer).filter(|_| ranged),
        body: answer
            .bytes_stream()
            .map(move |bytes| bytes.map_err(&failed))
            .boxed(),
    })
}

/// The whole length in `Content-Range: bytes 0-9/100`.
fn total_of(answer: &Response) -> Option<u64> {
    answer
        .headers()
        .get(CONTENT_RANGE)?
        .to_str()
        .ok()?
        .rsplit('/')
        .next()?
        .parse()
        .ok()
        .filter(|total| *total > 0)
}
