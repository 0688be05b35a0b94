//! The body of every answer that leaves the router.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use crate::proxy::held::Held;
use crate::proxy::relay::Relay;

/// The body of an answer.
#[derive(Debug)]
pub(crate) enum Body {
    /// All there.
    Full(Option<Bytes>),
    /// Coming from a worker.
    Relay(Box<Relay>),
    /// Begun while the request still waits for its first byte.
    Held(Box<Held>),
}

impl Body {
    /// A body that is all there.
    pub(crate) fn full(bytes: impl Into<Bytes>) -> Self {
        Self::Full(Some(bytes.into()))
    }

    /// When its request must be over, if it still runs.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Full(_) => None,
            Self::Relay(relay) => relay.deadline(),
            Self::Held(held) => Some(held.deadline()),
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        loop {
            let polled = match &mut *self {
                Self::Full(bytes) => {
                    return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes))));
                }
                Self::Relay(relay) => {
                    return relay
                        .poll_data(cx)
                        .map(|data| data.map(|d| d.map(Frame::data)));
                }
                Self::Held(held) => held.poll_data(cx),
            };
            match polled {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(bytes)) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Poll::Ready(Err(next)) => *self = next,
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Relay(relay) => relay.is_end(),
            Self::Held(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Self::Relay(relay) => relay
                .exact_len()
                .map_or_else(SizeHint::default, SizeHint::with_exact),
            Self::Held(_) => SizeHint::default(),
        }
    }
}
