//! The listener: HTTP/1.1 and HTTP/2 without TLS, with every time limit that
//! hyper leaves open, a bound on connections, and a drain that finishes streams.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::TokioTimer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::conn::Conn;
use crate::end::{End, Wait};
use crate::http2;
use crate::proxy::body::Body;
use crate::turn;
use crate::untaken::{Watched, drive};

/// Sent before a connection is closed whose request's head did not come in time.
const TOO_SLOW: &[u8] = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\n\
    content-type: application/json\r\ncontent-length: 152\r\n\r\n\
    {\"error\":{\"message\":\"The head of the request did not come in time; send it at once.\",\
    \"type\":\"invalid_request_error\",\"param\":null,\"code\":\"head_timeout\"}}";
/// The first bytes of HTTP/2 with prior knowledge; no request of HTTP/1 begins so. hyper
/// waits for them without a limit, so that they are there before it is asked.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// From the first look at a connection that sent only a part of them to the second; each
/// further pause is twice as long.
const SNIFF: Duration = Duration::from_millis(5);
/// After an error that has to do with the process, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const MAX_HEADERS: usize = 100;
/// One read of a body. More at once would leave the cache before the fact reader
/// has seen it, and waste more of each buffer that a read does not fill.
pub(crate) const MAX_READ: usize = 64 * 1024;

/// What a connection may do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionLimits {
    /// Connections at once.
    pub(crate) connections: usize,
    /// For the head of a request, and between two requests; for a connection of HTTP/2,
    /// without any stream.
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
    stop: End,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut stopped = stop.wait();
    loop {
        let place = tokio::select! {
            () = stopped.over() => return,
            Ok(place) = Arc::clone(&places).acquire_owned() => place,
        };
        let accepted = tokio::select! {
            () = stopped.over() => return,
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

async fn connection<A: Api>(stream: TcpStream, api: A, limits: ConnectionLimits, stop: End) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let mut stopped = stop.wait();
    let is_h2 = tokio::select! {
        is_h2 = tokio::time::timeout(limits.header, speaks_h2(&stream)) => is_h2,
        () = stopped.over() => return,
    };
    let Ok(is_h2) = is_h2 else {
        return;
    };
    let conn = Conn::new(stream, limits.write);
    let service = Answering(api);
    if is_h2 {
        // Its state is large; connections of HTTP/1 are not to carry room for it.
        Box::pin(http2::speak(conn, service, limits, stopped)).await;
    } else {
        speak_http1(conn, service, limits.header, stopped).await;
    }
}

// The reason why a connection ended concerns its caller alone.

async fn speak_http1<A: Api>(
    conn: Conn,
    service: Answering<A>,
    patience: Duration,
    mut stopped: Wait,
) {
    let mut serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_READ)
        .serve_connection(conn, service);
    let mut ending = false;
    // How long bytes may wait at all, the connection itself sees to.
    let turn = turn::of_pieces(|cx| {
        let mut serving = Pin::new(&mut serving);
        if !ending && stopped.is_over(cx) {
            ending = true;
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

async fn speaks_h2(stream: &TcpStream) -> bool {
    let mut start = [0; PREFACE.len()];
    let mut pause = SNIFF;
    loop {
        match stream.peek(&mut start).await {
            Ok(0) | Err(_) => return false,
            Ok(got) if start[..got] != PREFACE[..got] => return false,
            Ok(got) if got == PREFACE.len() => return true,
            Ok(_) => {}
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}

/// Answers the requests of one connection.
pub(crate) struct Answering<A>(A);

impl<A: Api> Service<Request<Incoming>> for Answering<A> {
    type Response = Response<Watched>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        Answer(self.0.answer(request))
    }
}

/// An answer to come.
pub(crate) struct Answer(Pin<Box<dyn Future<Output = Response<Body>> + Send>>);

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
