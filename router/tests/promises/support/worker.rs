//! A worker that speaks the workers' protocol and does what it is told: by
//! fields of the request that no real worker knows, and by calls that make it
//! die, hang, slow down or lie.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt as _;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use protocol::load::{LoadReport, Phase};
use serde::Deserialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

/// What a request may tell the worker.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Wish {
    pub(crate) stream: bool,
    /// Answer with this status and an error body.
    pub(crate) status: Option<u16>,
    /// Before the first byte.
    pub(crate) first_ms: u64,
    /// Send the error's body without saying how long it is.
    pub(crate) unsized_error: bool,
    /// Say how long the stream is.
    pub(crate) sized: bool,
    /// Wait, in the slot, until the gate is open.
    pub(crate) gated: bool,
    /// Events of the stream.
    pub(crate) events: Option<usize>,
    /// Before each event but the first.
    pub(crate) gap_ms: u64,
    /// Size of an event, or of a whole answer.
    pub(crate) bytes: usize,
    /// Break the connection after this many events.
    pub(crate) die_after: Option<usize>,
    /// Break within an event when dying.
    pub(crate) tear: bool,
    /// Break the connection when the whole request is read.
    pub(crate) vanish: bool,
}

/// Events of a stream.
const EVENTS: usize = 3;
const DONE: &[u8] = b"data: [DONE]\n\n";

type Body = http_body_util::combinators::BoxBody<Bytes, std::io::Error>;

/// A worker on loopback. Dropping it closes it.
#[derive(Debug)]
pub(crate) struct FakeWorker {
    pub(crate) address: SocketAddr,
    pub(crate) state: Arc<State>,
    task: Mutex<Option<AbortOnDropHandle<()>>>,
}

#[derive(Debug)]
pub(crate) struct State {
    slots: Arc<Semaphore>,
    slot_count: u32,
    running: AtomicU32,
    waiting: AtomicU32,
    hits: AtomicUsize,
    left: AtomicUsize,
    slowness: AtomicU32,
    lie: Mutex<Option<u32>>,
    draining: AtomicBool,
    turns_away: AtomicBool,
    breaks_streams: AtomicBool,
    leaves_probes: AtomicBool,
    probes: AtomicUsize,
    frozen: watch::Sender<bool>,
    gate: watch::Sender<bool>,
    bodies: Mutex<Vec<Bytes>>,
    headers: Mutex<Vec<http::HeaderMap>>,
    clock: AtomicUsize,
}

impl FakeWorker {
    /// A worker with eight slots.
    pub(crate) async fn start() -> Self {
        Self::with_slots(8).await
    }

    pub(crate) async fn with_slots(slots: u32) -> Self {
        Self::at("127.0.0.1:0".parse().unwrap(), slots).await
    }

    pub(crate) async fn at(address: SocketAddr, slots: u32) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(1024).unwrap();
        let state = Arc::new(State {
            slots: Arc::new(Semaphore::new(slots as usize)),
            slot_count: slots,
            running: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            hits: AtomicUsize::new(0),
            left: AtomicUsize::new(0),
            slowness: AtomicU32::new(1),
            lie: Mutex::default(),
            draining: AtomicBool::new(false),
            turns_away: AtomicBool::new(false),
            breaks_streams: AtomicBool::new(false),
            leaves_probes: AtomicBool::new(false),
            probes: AtomicUsize::new(0),
            frozen: watch::Sender::new(false),
            gate: watch::Sender::new(false),
            bodies: Mutex::default(),
            headers: Mutex::default(),
            clock: AtomicUsize::new(1),
        });
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(accept(listener, Arc::clone(&state)));
        Self {
            address,
            state,
            task: Mutex::new(Some(AbortOnDropHandle::new(task))),
        }
    }

    /// Dies: every connection is reset, and new ones are refused.
    pub(crate) fn kill(&self) {
        self.task.lock().unwrap().take();
    }

    /// Hangs, as a stopped process does: connections stay, nothing moves.
    pub(crate) fn hang(&self) {
        self.state.frozen.send_replace(true);
    }

    /// Lets gated work go on, or holds it.
    pub(crate) fn open_gate(&self, open: bool) {
        self.state.gate.send_replace(open);
    }

    /// Takes this many times as long for everything.
    pub(crate) fn slow_down(&self, times: u32) {
        self.state.slowness.store(times, Ordering::Relaxed);
    }

    /// Reports this queue, whatever it has.
    pub(crate) fn lie(&self, queue: u32) {
        *self.state.lie.lock().unwrap() = Some(queue);
    }

    /// Reports that it takes nothing new, or that it does again.
    pub(crate) fn drain(&self, draining: bool) {
        self.state.draining.store(draining, Ordering::Relaxed);
    }

    /// Says 503 to all requests from now on.
    pub(crate) fn turn_away(&self) {
        self.state.turns_away.store(true, Ordering::Relaxed);
    }

    /// Breaks every stream off after its first event from now on.
    pub(crate) fn break_streams(&self) {
        self.state.breaks_streams.store(true, Ordering::Relaxed);
    }

    /// Leaves questions for its load without an answer from now on.
    pub(crate) fn leave_probes(&self) {
        self.state.leaves_probes.store(true, Ordering::Relaxed);
    }

    /// Questions for its load that came.
    pub(crate) fn probes(&self) -> usize {
        self.state.probes.load(Ordering::Relaxed)
    }

    /// Requests that came.
    pub(crate) fn hits(&self) -> usize {
        self.state.hits.load(Ordering::Relaxed)
    }

    /// Requests whose caller left before the end.
    pub(crate) fn left(&self) -> usize {
        self.state.left.load(Ordering::Relaxed)
    }

    /// The bodies of the requests that came, in this order.
    pub(crate) fn bodies(&self) -> Vec<Bytes> {
        self.state.bodies.lock().unwrap().clone()
    }

    /// The last request's body and headers.
    pub(crate) fn last(&self) -> (Bytes, http::HeaderMap) {
        let body = self.state.bodies.lock().unwrap().last().unwrap().clone();
        let headers = self.state.headers.lock().unwrap().last().unwrap().clone();
        (body, headers)
    }
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        while connections.try_join_next().is_some() {}
        connections.spawn(connection(stream, Arc::clone(&state)));
    }
}

async fn connection(stream: TcpStream, state: Arc<State>) {
    stream.set_nodelay(true).unwrap();
    // So that an aborted task resets the connection, as a killed process does.
    stream.set_zero_linger().unwrap();
    let mut frozen = state.frozen.subscribe();
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { answer(request, state).await }
    });
    let mut serving =
        std::pin::pin!(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    loop {
        // Frozen, the connection is not even polled.
        frozen.wait_for(|frozen| !frozen).await.unwrap();
        tokio::select! {
            _ = serving.as_mut() => return,
            _ = frozen.wait_for(|frozen| *frozen) => {}
        }
    }
}

fn report(state: &State) -> LoadReport {
    let lie = *state.lie.lock().unwrap();
    LoadReport {
        phase: if state.draining.load(Ordering::Relaxed) {
            Phase::Draining
        } else {
            Phase::Serving
        },
        running: lie.unwrap_or(state.running.load(Ordering::Relaxed)),
        waiting: if lie.is_some() {
            0
        } else {
            state.waiting.load(Ordering::Relaxed)
        },
        slots: state.slot_count,
        captured_at_ms: state.clock.fetch_add(1, Ordering::Relaxed) as u64,
        ..LoadReport::default()
    }
}

fn full(status: u16, text: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(text)).map_err(|e| match e {}).boxed());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
        .headers_mut()
        .insert("content-type", "application/json".parse().unwrap());
    response
}

fn error(status: u16, wish: &Wish) -> Response<Body> {
    let filler = "x".repeat(wish.bytes);
    let response = full(
        status,
        format!(
            r#"{{"error":{{"message":"as wished {filler}","type":"server_error","param":null,"code":"wished_{status}"}}}}"#
        ),
    );
    if !wish.unsized_error {
        return response;
    }
    let (head, body) = response.into_parts();
    Response::from_parts(
        head,
        StreamBody::new(body.into_data_stream().map_ok(Frame::data)).boxed(),
    )
}

/// The answer; an error closes the connection without one.
async fn answer(request: Request<Incoming>, state: Arc<State>) -> std::io::Result<Response<Body>> {
    let mut response = match request.uri().path() {
        "/v1/load" => {
            state.probes.fetch_add(1, Ordering::Relaxed);
            if state.leaves_probes.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            full(200, serde_json::to_string(&report(&state)).unwrap())
        }
        "/v1/models" => full(200, r#"{"object":"list","data":[{"id":"m"}]}"#.to_owned()),
        _ => work(request, &state).await?,
    };
    let load = serde_json::to_string(&report(&state)).unwrap();
    response
        .headers_mut()
        .insert(protocol::header::LOAD, load.parse().unwrap());
    Ok(response)
}

/// Counts a request that is dropped before its end.
struct Presence {
    state: Arc<State>,
    ended: bool,
    _slot: tokio::sync::OwnedSemaphorePermit,
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.state.running.fetch_sub(1, Ordering::Relaxed);
        if !self.ended {
            self.state.left.fetch_add(1, Ordering::Relaxed);
        }
    }
}

struct Waits<'a>(&'a State, bool);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
        if !self.1 {
            self.0.left.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn work(request: Request<Incoming>, state: &Arc<State>) -> std::io::Result<Response<Body>> {
    let is_llava = request.uri().path() == "/worker_generate_stream";
    state.hits.fetch_add(1, Ordering::Relaxed);
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let wish: Wish = serde_json::from_slice(&body).unwrap();
    state.bodies.lock().unwrap().push(body);
    state.headers.lock().unwrap().push(head.headers);
    if wish.vanish {
        return Err(std::io::Error::other("vanishes as wished"));
    }
    let turned_away = state.turns_away.load(Ordering::Relaxed).then_some(503);
    if let Some(status) = wish.status.or(turned_away) {
        pause(state, wish.first_ms).await;
        return Ok(error(status, &wish));
    }
    state.waiting.fetch_add(1, Ordering::Relaxed);
    let mut waits = Waits(state, false);
    let slot = Arc::clone(&state.slots).acquire_owned().await.unwrap();
    waits.1 = true;
    drop(waits);
    state.running.fetch_add(1, Ordering::Relaxed);
    let mut presence = Presence {
        state: Arc::clone(state),
        ended: false,
        _slot: slot,
    };
    if wish.gated {
        let mut gate = state.gate.subscribe();
        gate.wait_for(|open| *open).await.unwrap();
    }
    pause(state, wish.first_ms).await;
    if !wish.stream && !is_llava {
        presence.ended = true;
        return Ok(full(
            200,
            format!(
                r#"{{"object":"chat.completion","choices":[],"filler":"{}"}}"#,
                "x".repeat(wish.bytes)
            ),
        ));
    }
    let (sender, receiver) = mpsc::channel(1);
    let state = Arc::clone(state);
    let length: usize = (0..wish.events.unwrap_or(EVENTS))
        .map(|number| event(number, wish.bytes, is_llava).len())
        .sum();
    let sized = wish.sized;
    tokio::spawn(async move {
        tokio::select! {
            taken = events(&sender, &wish, &state, is_llava) => presence.ended = taken,
            () = sender.closed() => {}
        }
        drop(presence);
    });
    let mut response = Response::new(StreamBody::new(Frames(receiver)).boxed());
    if sized {
        let done = if is_llava { 0 } else { DONE.len() };
        response
            .headers_mut()
            .insert("content-length", (length + done).into());
    }
    if !is_llava {
        response
            .headers_mut()
            .insert("content-type", "text/event-stream".parse().unwrap());
    }
    Ok(response)
}

async fn pause(state: &State, millis: u64) {
    let slowness = u64::from(state.slowness.load(Ordering::Relaxed));
    if millis > 0 {
        tokio::time::sleep(Duration::from_millis(millis * slowness)).await;
    }
}

/// Sends the events that were wished for; whether somebody took them.
async fn events(
    sender: &mpsc::Sender<std::io::Result<Frame<Bytes>>>,
    wish: &Wish,
    state: &State,
    is_llava: bool,
) -> bool {
    let count = wish.events.unwrap_or(EVENTS);
    let breaks = state.breaks_streams.load(Ordering::Relaxed);
    let die_after = wish.die_after.or(breaks.then_some(1));
    for number in 0..count {
        if number > 0 {
            pause(state, wish.gap_ms).await;
        }
        if die_after == Some(number) {
            if wish.tear {
                let _ = sender
                    .send(Ok(Frame::data(Bytes::from_static(b"data: {\"torn"))))
                    .await;
            }
            let _ = sender
                .send(Err(std::io::Error::other("dies as wished")))
                .await;
            return true;
        }
        let event = event(number, wish.bytes, is_llava);
        if sender.send(Ok(Frame::data(event))).await.is_err() {
            return false;
        }
    }
    if !is_llava {
        let done = Bytes::from_static(DONE);
        return sender.send(Ok(Frame::data(done))).await.is_ok();
    }
    true
}

/// The event that every worker sends at this place.
pub(crate) fn event(number: usize, bytes: usize, is_llava: bool) -> Bytes {
    let filler = "x".repeat(bytes);
    if is_llava {
        protocol::nul::frame(&format!(
            r#"{{"text": "p {number}{filler}", "error_code": 0}}"#
        ))
    } else {
        protocol::sse::event(&format!(
            r#"{{"choices":[{{"delta":{{"content":"{number} {filler}"}}}}]}}"#
        ))
    }
}

struct Frames(mpsc::Receiver<std::io::Result<Frame<Bytes>>>);

impl futures::Stream for Frames {
    type Item = std::io::Result<Frame<Bytes>>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}
