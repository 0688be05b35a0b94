//! Ends an answer that its caller does not take. A body looks at the clock only when it
//! is asked for more, and nobody asks while a piece waits for the caller's window, or
//! in front of a connection that takes a byte now and then: a caller could hold a slot
//! for ever. So whoever drives an answer looks at the clock too while a piece lies there.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::Sleep;

use crate::proxy::body::Body;

tokio::task_local! {
    /// From the body to whoever drives it, in the same task.
    static NEWS: Cell<News>;
}

/// What became of an answer since the last look.
#[derive(Clone, Copy, Debug, Default)]
enum News {
    /// Nothing.
    #[default]
    Nothing,
    /// A piece was handed over, or the head; when the request must be over, if it still runs.
    Handed(Option<Instant>),
    /// The piece was taken: more is asked for, or the answer is gone. What is due now,
    /// the body sees to itself.
    Taken,
}

/// A body that tells whoever drives it when it is asked for more.
#[derive(Debug)]
pub(crate) struct Watched(Body);

/// Polls for a connection, or for one stream of HTTP/2, until it is done; gives up, with
/// `None`, when a piece lay untaken for `limit`, or until its request must be over.
pub(crate) fn drive<T>(
    limit: Option<Duration>,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> impl Future<Output = Option<T>> {
    let mut timer: Option<Pin<Box<Sleep>>> = None;
    let watching = poll_fn(move |cx| {
        if let Poll::Ready(done) = poll(cx) {
            return Poll::Ready(Some(done));
        }
        match NEWS.with(Cell::take) {
            News::Nothing => {}
            News::Taken => timer = None,
            News::Handed(deadline) => {
                let stalled = limit.map(|limit| shell::clock::now() + limit);
                let due = stalled.into_iter().chain(deadline).min();
                timer = due.map(|due| Box::pin(tokio::time::sleep_until(due.into())));
            }
        }
        match &mut timer {
            Some(timer) => timer.as_mut().poll(cx).map(|()| None),
            None => Poll::Pending,
        }
    });
    NEWS.scope(Cell::default(), watching)
}

fn tell(news: News) {
    // A body that is dropped by another task has nobody to tell.
    let _ = NEWS.try_with(|told| told.set(news));
}

impl Watched {
    /// A body that is about to be sent.
    pub(crate) fn new(body: Body) -> Self {
        tell(News::Handed(body.deadline()));
        Self(body)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        tell(News::Taken);
    }
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        let polled = Pin::new(&mut self.0).poll_frame(cx);
        tell(match polled {
            Poll::Ready(_) => News::Handed(self.0.deadline()),
            Poll::Pending => News::Taken,
        });
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    /// Drives an answer to which this happens, at once.
    fn driven(limit: Option<Duration>, moves: &[News]) -> impl Future<Output = Option<()>> {
        let mut moves = moves.iter().copied();
        drive(limit, move |_| {
            moves.by_ref().for_each(tell);
            Poll::Pending
        })
    }

    #[tokio::test]
    async fn only_what_lies_untaken_for_too_long_is_given_up() {
        let late = News::Handed(Some(shell::clock::now() - Duration::from_secs(1)));
        assert_eq!(driven(None, &[late]).await, None);
        let in_time = News::Handed(None);
        assert_eq!(
            driven(Some(Duration::from_millis(1)), &[in_time]).await,
            None
        );
        let waits = |limit, moves: &[News]| driven(limit, moves).now_or_never().is_none();
        assert!(waits(None, &[in_time]));
        assert!(waits(None, &[late, News::Taken]));
        assert!(waits(Some(Duration::from_secs(60)), &[in_time]));
    }
}
