//! Small questions to a worker: its models, its load. On the same connections as
//! requests, so that an answer means that requests would be answered too.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};

use crate::request::intake::Payload;
use crate::upstream::exchange::{Broken, SendError, send};
use crate::upstream::link::{ConnectError, Links};

/// A question got no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// No answer.
    #[error(transparent)]
    Send(#[from] SendError),
    /// Half an answer.
    #[error("the answer broke off: {0}")]
    Broken(#[from] Broken),
    /// Not in time.
    #[error("no answer within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    /// Another status than 200.
    #[error("answered {0}")]
    Status(StatusCode),
    /// Not what was asked for.
    #[error("the answer does not read: {0}")]
    Unreadable(#[from] serde_json::Error),
}

impl AskError {
    /// Whether it was not even asked, for a lack on our side.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self, Self::Connect(error) if error.is_ours())
    }
}

/// `GET path`; the head and body of a 200.
pub(crate) async fn ask(
    links: &Arc<Links>,
    path: &'static str,
    patience: Duration,
) -> Result<(HeaderMap, Bytes), AskError> {
    let asking = async {
        let mut stale = false;
        loop {
            let now = shell::clock::now();
            let kept = if stale { None } else { links.take_idle(now) };
            let fresh = kept.is_none();
            let link = match kept {
                Some(link) => link,
                None => links.connect(patience).await?,
            };
            let mut request = Request::new(Payload::empty());
            *request.uri_mut() = http::Uri::from_static(path);
            links.address(request.headers_mut());
            match send(link, links, request).await {
                Err(error) if error.stale && !fresh => stale = true,
                Err(error) => return Err(error.into()),
                Ok(answer) => {
                    let (head, body) = answer.into_parts();
                    let body = body.collect().await?;
                    return match head.status {
                        StatusCode::OK => Ok((head.headers, body)),
                        status => Err(AskError::Status(status)),
                    };
                }
            }
        }
    };
    tokio::time::timeout(patience, asking)
        .await
        .unwrap_or(Err(AskError::TimedOut(patience)))
}
