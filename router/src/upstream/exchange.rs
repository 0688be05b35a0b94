//! One request to a worker and its answer. The body of the answer owns the
//! connection: reading it to the end gives the connection back, dropping it
//! closes the connection, which tells the worker at once that nobody listens.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;
use std::future::Future;

use crate::request::intake::Payload;
use crate::upstream::link::{Link, Links};

/// The body of an answer, still at its worker.
#[derive(Debug)]
pub(crate) struct Answer {
    body: Incoming,
    link: Option<Link>,
    home: Arc<Links>,
}

/// A request got no answer.
#[derive(Debug, thiserror::Error)]
#[error("no answer: {source}")]
pub(crate) struct SendError {
    /// The worker closed a kept connection just as it was used: nothing was
    /// wrong, and the request goes out again on another connection.
    pub(crate) stale: bool,
    source: hyper::Error,
}

/// Sends `request` on `link` and waits for the head of the answer.
pub(crate) async fn send(
    mut link: Link,
    home: &Arc<Links>,
    request: Request<Payload>,
) -> Result<Response<Answer>, SendError> {
    let used_before = link.used_before;
    let failed = |source: hyper::Error| SendError {
        stale: used_before
            && (source.is_canceled() || source.is_incomplete_message() || is_io(&source)),
        source,
    };
    std::future::poll_fn(|cx| {
        let ready = link.poll_ready();
        if ready.is_pending() {
            link.drive(cx);
            return link.poll_ready();
        }
        ready
    })
    .await
    .map_err(failed)?;
    let mut answer = pin!(link.sender.send_request(request));
    let connection = &mut link.connection;
    // The answer can only come from driving the connection right here, so that
    // its own wake-up would be one too many.
    let head = std::future::poll_fn(|cx| {
        if let Some(driven) = connection
            && Pin::new(driven).poll(cx).is_ready()
        {
            *connection = None;
        }
        answer
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
    })
    .await
    .map_err(failed)?;
    Ok(head.map(|body| Answer {
        body,
        link: Some(link),
        home: Arc::clone(home),
    }))
}

fn is_io(error: &hyper::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.is::<std::io::Error>())
}

impl Answer {
    /// The next frame; `None` at the end that the worker meant.
    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut quiet = Context::from_waker(Waker::noop());
        let mut polled = Pin::new(&mut self.body).poll_frame(&mut quiet);
        if polled.is_pending()
            && let Some(link) = &mut self.link
        {
            link.drive(cx);
            polled = Pin::new(&mut self.body).poll_frame(&mut quiet);
        }
        let frame = ready!(polled);
        if frame.is_none()
            && let Some(link) = self.link.take()
        {
            self.home.give_back(link, shell::clock::now());
        }
        Poll::Ready(frame)
    }

    /// The length of what is left, if the worker told it.
    pub(crate) fn exact_len(&self) -> Option<u64> {
        self.body.size_hint().exact()
    }

    /// Reads to the end.
    pub(crate) async fn collect(mut self) -> Result<Bytes, hyper::Error> {
        let mut first: Option<Bytes> = None;
        let mut rest = bytes::BytesMut::new();
        while let Some(frame) = std::future::poll_fn(|cx| self.poll_frame(cx)).await {
            let Ok(data) = frame?.into_data() else {
                continue;
            };
            match &first {
                None => first = Some(data),
                Some(_) => rest.extend_from_slice(&data),
            }
        }
        let first = first.unwrap_or_default();
        if rest.is_empty() {
            return Ok(first);
        }
        let mut whole = bytes::BytesMut::with_capacity(first.len() + rest.len());
        whole.extend_from_slice(&first);
        whole.extend_from_slice(&rest);
        Ok(whole.freeze())
    }
}
