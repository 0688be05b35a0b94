//! The listener: HTTP/1.1 and HTTP/2 without TLS, with every time limit that
//! hyper leaves open, a bound on connections, and a drain that finishes streams.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::Service;
use hyper_util::rt::TokioTimer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::conn::Conn;
use crate::proxy::body::Body;
use crate::turn;
use crate::untaken::{Watched, drive};

/// Sent before a connection is closed whose request's head did not come in time.
const TOO_SLOW: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n\
    content-type: application/json\r\ncontent-length: 152\r\n\r\n\
    {\"error\":{\"message\":\"The head of the request did not come in time; send it at once.\",\
    \"type\":\"invalid_request_error\",\"param\":null,\"code\":\"head_timeout\"}}";
/// The first bytes of HTTP/2 with prior knowledge; no method of HTTP/1 begins so.
const PREFACE: &[u8] = b"PRI ";
/// Between two looks at a connection that sent less than the preface's length.
const SNIFF: Duration = Duration::from_millis(5);
/// After an error that has to do with the process, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const MAX_HEADERS: usize = 100;
const MAX_STREAMS: u32 = 200;
const MAX_HEADER_LIST: u32 = 64 * 1024;
/// One read of a body. More at once would leave the cache before the fact reader
/// has seen it, and waste more of each buffer that a read does not fill.
const MAX_READ: usize = 64 * 1024;
const PING: Duration = Duration::from_secs(20);

/// What a connection may do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionLimits {
    /// Connections at once.
    pub(crate) connections: usize,
    /// For the head of a request, and between two requests.
    pub(crate) header: Duration,
    /// For a caller to take bytes.
    pub(crate) write: Duration,
}

/// The connections that are open.
#[derive(Clone, Debug, Default)]
pub(crate) struct Connections {
    open: Arc<AtomicUsize>,
}

/// Answers requests; cheap to clone.
pub(crate) trait Api: Clone + Send + Sync + 'static {
    /// Answers one request.
    fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Pin<Box<dyn Future<Output = Response<Body>> + Send>>;
}

impl Connections {
    /// How many are open.
    pub(crate) fn count(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

/// Accepts connections until `stop`; those that are open then are asked to end
/// after the answer under way.
pub(crate) async fn serve<A: Api>(
    listener: TcpListener,
    api: A,
    limits: ConnectionLimits,
    connections: Connections,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    loop {
        let place = tokio::select! {
            () = stop.cancelled() => return,
            Ok(place) = Arc::clone(&places).acquire_owned() => place,
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let open = Open::new(&connections);
        let (api, stop) = (api.clone(), stop.clone());
        tokio::spawn(async move {
            connection(stream, api, limits, stop).await;
            drop((open, place));
        });
    }
}

struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(connections: &Connections) -> Self {
        connections.open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(&connections.open))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn connection<A: Api>(
    stream: TcpStream,
    api: A,
    limits: ConnectionLimits,
    stop: CancellationToken,
) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let is_h2 = tokio::select! {
        is_h2 = tokio::time::timeout(limits.header, speaks_h2(&stream)) => is_h2,
        () = stop.cancelled() => return,
    };
    let Ok(is_h2) = is_h2 else {
        return;
    };
    let conn = Conn::new(stream, limits.write);
    let service = Answering(api);
    if is_h2 {
        // Its state is large; connections of HTTP/1 are not to carry room for it.
        Box::pin(speak_http2(conn, service, limits.write, stop)).await;
    } else {
        speak_http1(conn, service, limits.header, stop).await;
    }
}

// The reason why a connection ended concerns its caller alone.

async fn speak_http1<A: Api>(
    conn: Conn,
    service: Answering<A>,
    patience: Duration,
    stop: CancellationToken,
) {
    let mut serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_READ)
        .serve_connection(conn, service);
    let mut ending = Ending::new(stop);
    // How long bytes may wait at all, the connection itself sees to.
    let turn = turn::of_pieces(|cx| {
        let mut serving = Pin::new(&mut serving);
        if ending.begins(cx) {
            serving.as_mut().graceful_shutdown();
        }
        serving.poll(cx)
    });
    let served = drive(None, turn).await;
    if served.is_some_and(|served| served.is_err_and(|error| error.is_timeout())) {
        let parts = serving.into_parts();
        if !parts.read_buf.is_empty() {
            parts.io.say(TOO_SLOW);
        }
    }
}

async fn speak_http2<A: Api>(
    conn: Conn,
    service: Answering<A>,
    write: Duration,
    stop: CancellationToken,
) {
    let serving = http2::Builder::new(Streams { write })
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(MAX_HEADER_LIST)
        .keep_alive_interval(PING)
        .serve_connection(conn, service);
    let mut serving = pin!(serving);
    let mut ending = Ending::new(stop);
    let _ = poll_fn(|cx| {
        if ending.begins(cx) {
            serving.as_mut().graceful_shutdown();
        }
        serving.as_mut().poll(cx)
    })
    .await;
}

/// Runs the streams of an HTTP/2 connection, each of which has a window of its own that
/// its caller may leave shut. Giving one up resets it.
#[derive(Clone, Copy, Debug)]
struct Streams {
    write: Duration,
}

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let mut stream = Box::pin(stream);
        tokio::spawn(drive(Some(self.write), move |cx| stream.as_mut().poll(cx)));
    }
}

/// Notes once that the server is to stop, without a look at the token's lock at
/// each wake-up.
struct Ending {
    cancelled: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    stop: CancellationToken,
    asked: bool,
}

impl Ending {
    fn new(stop: CancellationToken) -> Self {
        Self {
            cancelled: None,
            stop,
            asked: false,
        }
    }

    fn begins(&mut self, cx: &mut Context<'_>) -> bool {
        if self.cancelled.is_none() {
            let mut cancelled = Box::pin(self.stop.clone().cancelled_owned());
            let _ = cancelled.as_mut().poll(cx);
            self.cancelled = Some(cancelled);
        }
        if !self.asked && self.stop.is_cancelled() {
            self.asked = true;
            return true;
        }
        false
    }
}

async fn speaks_h2(stream: &TcpStream) -> bool {
    let mut start = [0; PREFACE.len()];
    loop {
        match stream.peek(&mut start).await {
            Ok(0) | Err(_) => return false,
            Ok(got) if start[..got] != PREFACE[..got] => return false,
            Ok(got) if got == PREFACE.len() => return true,
            Ok(_) => tokio::time::sleep(SNIFF).await,
        }
    }
}

struct Answering<A>(A);

impl<A: Api> Service<Request<Incoming>> for Answering<A> {
    type Response = Response<Watched>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        Answer(self.0.answer(request))
    }
}

struct Answer(Pin<Box<dyn Future<Output = Response<Body>> + Send>>);

impl Future for Answer {
    type Output = Result<Response<Watched>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = self.0.as_mut().poll(cx);
        answer.map(|answer| Ok(answer.map(Watched::new)))
    }
}

/// Listens with room for a burst of callers.
pub(crate) fn listen(address: std::net::SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        std::net::SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
        std::net::SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(4096)
}
