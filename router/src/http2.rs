//! Connections of HTTP/2. hyper has no limit for one on which nothing happens: a caller
//! that answers pings, or none at all when asked to end, would keep its place for ever,
//! and hold up a drain.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper_util::rt::TokioTimer;
use tokio::time::Sleep;

use crate::conn::Conn;
use crate::end::Wait;
use crate::server::{Answering, Api, ConnectionLimits};
use crate::untaken::drive;

const MAX_STREAMS: u32 = 200;
const MAX_HEADER_LIST: u32 = 64 * 1024;
const PING: Duration = Duration::from_secs(20);
/// Without any stream, for a caller that was told that the connection ends.
const GOODBYE: Duration = Duration::from_secs(1);

/// Speaks until the caller leaves, or was idle for the limit of a head, or `stopped` is
/// over and the streams are done.
pub(crate) async fn speak<A: Api>(
    conn: Conn,
    service: Answering<A>,
    limits: ConnectionLimits,
    mut stopped: Wait,
) {
    let streams = Streams::new(limits.write);
    let serving = http2::Builder::new(streams.clone())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST)
        .keep_alive_interval(PING)
        .serve_connection(conn, service);
    let mut serving = pin!(serving);
    let mut idle = Idle::new(streams.clone(), limits.header);
    let mut ending = false;
    poll_fn(|cx| {
        loop {
            if serving.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            if ending {
                return idle.poll_over(cx);
            }
            if !stopped.is_over(cx) && idle.poll_over(cx).is_pending() {
                return Poll::Pending;
            }
            ending = true;
            serving.as_mut().graceful_shutdown();
            idle = Idle::new(streams.clone(), GOODBYE);
        }
    })
    .await;
}

/// Runs the streams of a connection, each of which has a window of its own that its
/// caller may leave shut. Giving one up resets it.
#[derive(Clone, Debug)]
struct Streams {
    write: Duration,
    count: Arc<Mutex<Count>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    begun: u64,
    ended: u64,
}

impl Streams {
    fn new(write: Duration) -> Self {
        Self {
            write,
            count: Arc::default(),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Count)) {
        change(&mut self.count.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// How many streams there were, if none runs.
    fn all_ended(&self) -> Option<u64> {
        let count = *self.count.lock().unwrap_or_else(PoisonError::into_inner);
        (count.begun == count.ended).then_some(count.begun)
    }
}

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let mut stream = Box::pin(stream);
        let running = Running::new(self.clone());
        let driving = drive(Some(self.write), move |cx| stream.as_mut().poll(cx));
        tokio::spawn(async move {
            driving.await;
            drop(running);
        });
    }
}

/// Counts a stream until it is dropped.
struct Running(Streams);

impl Running {
    fn new(streams: Streams) -> Self {
        streams.change(|count| count.begun += 1);
        Self(streams)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.change(|count| count.ended += 1);
    }
}

/// Waits for a time without any stream, of the limit at least and twice that at most.
struct Idle {
    streams: Streams,
    limit: Duration,
    timer: Pin<Box<Sleep>>,
    /// At the last look.
    all_ended: Option<u64>,
}

impl Idle {
    fn new(streams: Streams, limit: Duration) -> Self {
        Self {
            limit,
            timer: Box::pin(tokio::time::sleep(limit)),
            all_ended: streams.all_ended(),
            streams,
        }
    }

    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let before = self.all_ended;
            self.all_ended = self.streams.all_ended();
            if before.is_some() && before == self.all_ended {
                return Poll::Ready(());
            }
            let next = shell::clock::now() + self.limit;
            self.timer.as_mut().reset(next.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_connection_is_idle_when_no_stream_ran_for_a_whole_limit() {
        let streams = Streams::new(LIMIT);
        let mut idle = Idle::new(streams.clone(), LIMIT);
        let mut over = poll_fn(|cx| idle.poll_over(cx));
        let running = Running::new(streams.clone());
        let waited = tokio::time::timeout(3 * LIMIT, &mut over).await;
        assert!(waited.is_err(), "a stream runs");
        drop(running);
        over.await;
    }
}
