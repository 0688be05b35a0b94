//! Connections to one worker. A connection belongs to the request that uses it: no
//! task, no channel and no buffer of its own, and dropping the request closes it.
//! Idle ones wait in a stack; the warmest is used first.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use http::header;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;

/// Less than the 5 s after which uvicorn, under SGLang and vLLM, closes an idle
/// connection.
const IDLE: Duration = Duration::from_secs(3);
/// Idle connections kept to one worker.
const MAX_IDLE: usize = 256;
/// One read of an answer.
const READ: usize = 64 * 1024;

thread_local! {
    /// Where all reads of a thread land first. A buffer for each connection would be
    /// most of what a silent stream costs.
    static LANDING: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into());
}

/// A connection that can take a request.
#[derive(Debug)]
pub(crate) struct Link {
    stream: TcpStream,
    pub(super) used_before: bool,
    idle_since: Option<Instant>,
}

/// The way to one worker.
#[derive(Debug)]
pub(crate) struct Links {
    /// `host:port`, as dialled and as sent in `Host`.
    authority: http::HeaderValue,
    key: Option<http::HeaderValue>,
    target: String,
    idle: Mutex<Vec<Link>>,
}

/// A worker could not be connected to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// Refused, unreachable or not resolved.
    #[error("connect: {0}")]
    Failed(#[from] io::Error),
    /// No answer in time.
    #[error("connect: no answer in time")]
    TimedOut,
}

impl ConnectError {
    /// Whether the lack is on our side, so that it says nothing of the worker.
    pub(crate) fn is_ours(&self) -> bool {
        let Self::Failed(error) = self else {
            return false;
        };
        matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
    }
}

impl Links {
    /// The way to `authority`, `host:port`, with what its worker wants to see as
    /// `Authorization`.
    pub(crate) fn new(authority: &http::uri::Authority, key: Option<http::HeaderValue>) -> Self {
        let target = match authority.port() {
            Some(_) => authority.as_str().to_owned(),
            None => format!("{authority}:80"),
        };
        Self {
            authority: http::HeaderValue::from_str(authority.as_str())
                .unwrap_or_else(|_| http::HeaderValue::from_static("worker")),
            key,
            target,
            idle: Mutex::default(),
        }
    }

    /// Writes the headers that say whom a request is for, and that it may.
    pub(crate) fn address(&self, headers: &mut http::HeaderMap) {
        headers.insert(header::HOST, self.authority.clone());
        if let Some(key) = &self.key {
            headers.insert(header::AUTHORIZATION, key.clone());
        }
    }

    /// Where it leads, `host:port`.
    pub(crate) fn target(&self) -> &str {
        &self.target
    }

    /// Whether it leads there.
    pub(crate) fn is_to(&self, authority: &http::uri::Authority) -> bool {
        self.authority == authority.as_str()
    }

    /// An idle connection that is still open, and not about to be closed by the worker.
    pub(crate) fn take_idle(&self, now: Instant) -> Option<Link> {
        loop {
            let link = self.lock().pop()?;
            if !link.is_old(now) && link.is_silent() {
                return Some(link);
            }
        }
    }

    /// A new connection.
    pub(crate) async fn connect(&self, timeout: Duration) -> Result<Link, ConnectError> {
        let connecting = TcpStream::connect(&self.target);
        let stream = tokio::time::timeout(timeout, connecting)
            .await
            .map_err(|_| ConnectError::TimedOut)??;
        stream.set_nodelay(true)?;
        Ok(Link {
            stream,
            used_before: false,
            idle_since: None,
        })
    }

    /// Takes a connection back whose answer was read to its end.
    pub(super) fn give_back(&self, mut link: Link, now: Instant) {
        if link.is_silent() {
            link.idle_since = Some(now);
            link.used_before = true;
            let mut idle = self.lock();
            if idle.len() < MAX_IDLE {
                idle.push(link);
            }
        }
    }

    /// Closes what was idle for too long, and tells how many are left.
    pub(crate) fn sweep(&self, now: Instant) -> usize {
        let mut idle = self.lock();
        idle.retain(|link| !link.is_old(now));
        idle.len()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Link>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    fn is_old(&self, now: Instant) -> bool {
        let idle = |since| now.saturating_duration_since(since);
        self.idle_since.is_some_and(|since| idle(since) >= IDLE)
    }

    /// Whether the other side has neither closed nor said anything. The look also
    /// takes the waker of the last user off the socket.
    fn is_silent(&self) -> bool {
        let mut nobody = Context::from_waker(Waker::noop());
        match self.stream.poll_read_ready(&mut nobody) {
            Poll::Pending => true,
            Poll::Ready(_) => {
                let read = self.stream.try_read(&mut [0]);
                read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
            }
        }
    }

    /// Reads once, and shows what came: nothing at the end of the connection.
    pub(super) fn poll_read<T>(
        &mut self,
        cx: &mut Context<'_>,
        show: impl FnOnce(&[u8]) -> T,
    ) -> Poll<io::Result<T>> {
        LANDING.with_borrow_mut(|landing| {
            let mut buffer = ReadBuf::new(landing);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer))?;
            Poll::Ready(Ok(show(buffer.filled())))
        })
    }

    /// Writes from the front of `pieces`, and tells how many bytes.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, pieces)
    }
}
