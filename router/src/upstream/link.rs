//! Connections to one worker. A connection is driven by the task of the request
//! that uses it: no task, no channel hop and no second stack per stream, and
//! dropping the request closes it. Idle ones wait in a stack; the warmest is
//! used first.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use http::header;
use hyper::client::conn::http1::{self, Connection, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::request::intake::Payload;

/// Less than the 5 s after which uvicorn, under SGLang and vLLM, closes an idle
/// connection.
const IDLE: Duration = Duration::from_secs(3);
/// Idle connections kept to one worker.
const MAX_IDLE: usize = 256;
/// One read of an answer; token streams are small, and an idle stream keeps
/// this much memory.
const READ_BUFFER: usize = 8 * 1024;

/// A connection that can take a request.
#[derive(Debug)]
pub(crate) struct Link {
    pub(super) sender: SendRequest<Payload>,
    pub(super) connection: Option<Box<Connection<TokioIo<TcpStream>, Payload>>>,
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
    Failed(#[from] std::io::Error),
    /// No answer in time.
    #[error("connect: no answer in time")]
    TimedOut,
    /// The HTTP layer refused to start.
    #[error("connect: {0}")]
    Http(#[from] hyper::Error),
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

    /// An idle connection that is still open.
    pub(crate) fn take_idle(&self) -> Option<Link> {
        loop {
            let mut link = self.lock().pop()?;
            if link.is_open() {
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
        let (sender, connection) = http1::Builder::new()
            .read_buf_exact_size(Some(READ_BUFFER))
            .handshake(TokioIo::new(stream))
            .await?;
        Ok(Link {
            sender,
            connection: Some(Box::new(connection)),
            used_before: false,
            idle_since: None,
        })
    }

    /// Takes a connection back whose answer was read to its end.
    pub(crate) fn give_back(&self, mut link: Link, now: Instant) {
        if link.is_open() && link.sender.is_ready() {
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
        let old = |link: &Link| {
            link.idle_since
                .is_some_and(|since| now.duration_since(since) >= IDLE)
        };
        let mut idle = self.lock();
        idle.retain(|link| !old(link));
        idle.len()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Link>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    /// Lets the connection work. Ends it when it says that it is closed.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(connection) = &mut self.connection
            && Pin::new(connection).poll(cx).is_ready()
        {
            self.connection = None;
        }
    }

    /// Looks whether the other side has closed. The look also takes the waker
    /// of the last user off the socket.
    fn is_open(&mut self) -> bool {
        self.drive(&mut Context::from_waker(Waker::noop()));
        self.connection.is_some() && !self.sender.is_closed()
    }

    pub(super) fn poll_ready(&mut self) -> Poll<Result<(), hyper::Error>> {
        self.sender
            .poll_ready(&mut Context::from_waker(Waker::noop()))
    }
}
