//! Callers that leave and callers that are left, counted in steps: over real sockets,
//! with an engine that steps only as it is allowed to. What it takes in time is measured by
//! `make bench-worker`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use shell::clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;

use super::app::{App, routes};
use super::buffers::Buffers;
use super::connection::{self, ConnectionLimits};
use super::gate::Gate;
use super::images::ImageReader;
use super::limits::LimitArgs;
use super::metrics::HttpMetrics;
use super::status::Status;
use super::texts::Texts;
use crate::engine::Decode;
use crate::engine::tiny::{EOS, Setup, VOCAB, engine, letters};
use crate::prompt::{Message, Prompt};

const SLOTS: usize = 8;

/// One letter a token; prompts come as tokens.
struct Letters(Decode);

impl Texts for Letters {
    fn chat(&self, _: &[Message]) -> Result<Prompt, String> {
        Err("prompts come as tokens".to_owned())
    }

    fn rendered(&self, _: &str, _: usize) -> Result<Prompt, String> {
        Err("prompts come as tokens".to_owned())
    }

    fn decoder(&self) -> Decode {
        Arc::clone(&self.0)
    }

    fn token(&self, token: u32) -> Vec<u8> {
        self.0.text(&[token]).into_bytes()
    }
}

struct Server {
    setup: Setup,
    gate: Gate,
    address: SocketAddr,
    _stop: tokio_util::sync::DropGuard,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.setup.pace.let_go();
    }
}

impl Server {
    async fn start() -> Self {
        Self::with(SLOTS, LimitArgs::usual()).await
    }

    async fn with(slots: usize, limits: LimitArgs) -> Self {
        let setup = engine(slots, 100_000);
        setup.pace.hold();
        let gate = Gate::new(SLOTS);
        let app = App {
            names: vec!["tiny".to_owned()],
            created: 0,
            context: 10_000,
            vocab: VOCAB,
            texts: Arc::new(Letters(letters())),
            images: ImageReader::demo(&limits),
            engine: setup.engine.clone(),
            gate: gate.clone(),
            buffers: Buffers::new(limits.max_buffered),
            status: Status::default(),
            metrics: HttpMetrics::default(),
            limits,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let limits = ConnectionLimits {
            connections: 8,
            header: Duration::from_secs(60),
            write_stall: Duration::from_secs(60),
        };
        let stop = CancellationToken::new();
        tokio::spawn(connection::serve(
            listener,
            routes(Arc::new(app)),
            limits,
            stop.clone(),
        ));
        Self {
            setup,
            gate,
            address,
            _stop: stop.drop_guard(),
        }
    }

    /// A caller that wants an endless answer, as `change` makes it.
    async fn call(&self, change: Value) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(self.address).await.unwrap();
        let mut body =
            json!({"prompt": [5, 6, 7], "temperature": 0, "max_tokens": 4000, "stream": true});
        body["logit_bias"] = json!({EOS.to_string(): -100});
        for (field, value) in change.as_object().unwrap() {
            body[field] = value.clone();
        }
        let body = body.to_string();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body.as_bytes()).await.unwrap();
        stream
    }

    /// Lets the model be called until there are so many tokens; the next call waits.
    async fn generate(&self, tokens: u64) {
        let pace = &self.setup.pace;
        until("a call waits", || pace.begun() == 1).await;
        while self.setup.metrics.generation_tokens.get() < tokens {
            let begun = pace.begun();
            pace.allow(1);
            until("the next call waits", || pace.begun() > begun).await;
        }
    }

    /// After the caller has gone: the call under way may end, and there is no other.
    async fn is_left(&self) {
        until("the caller's leaving is known", || self.gate.held() == 0).await;
        let pace = &self.setup.pace;
        let begun = pace.begun();
        assert!(self.setup.engine.pulse().running() > 0);
        pace.allow(1);
        until("its slots are free", || {
            self.setup.engine.pulse().running() == 0
        })
        .await;
        assert_eq!(pace.begun(), begun, "there was another step");
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let end = clock::now() + Duration::from_secs(60);
    while !condition() {
        assert!(clock::now() < end, "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_caller_that_leaves_frees_its_slot_within_one_step() {
    let server = Server::start().await;
    let mut stream = server.call(json!({})).await;
    server.generate(3).await;
    let mut answer = [0; 64];
    stream.read_exact(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    drop(stream);
    server.is_left().await;
}

#[tokio::test]
async fn a_caller_behind_a_full_socket_frees_its_slots_within_one_step_too() {
    let server = Server::start().await;
    let stream = server.call(json!({"n": SLOTS, "logprobs": 20})).await;
    // Some 2 KB a token: more than the system's buffers take.
    server.generate(6000).await;
    drop(stream);
    server.is_left().await;
}

#[tokio::test]
async fn an_answer_that_has_begun_waits_for_its_siblings_as_long_as_they_need() {
    let limits = LimitArgs {
        queue_timeout: Duration::ZERO,
        ..LimitArgs::usual()
    };
    let server = Server::with(1, limits).await;
    server.setup.pace.let_go();
    let wish = json!({"n": 3, "max_tokens": 20, "stream": false});
    let mut stream = server.call(wish).await;
    let answer = read_to(&mut stream, "\"total_tokens\"").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(answer.matches("\"length\"").count(), 3, "{answer}");
}

#[tokio::test]
async fn the_end_of_the_grace_is_told_though_a_step_takes_for_ever() {
    let server = Server::start().await;
    let mut stream = server.call(json!({})).await;
    let mut whole = server.call(json!({"stream": false})).await;
    until("both have come in", || server.gate.held() == 2).await;
    server.generate(2).await;
    read_to(&mut stream, "data: ").await;
    server.setup.engine.abort();
    // No step has ended since.
    let rest = read_to(&mut stream, "0\r\n\r\n").await;
    assert_eq!(rest.matches("stream_error").count(), 1, "{rest}");
    assert!(!rest.contains("[DONE]"), "{rest}");
    let refused = read_to(&mut whole, "draining").await;
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
    until("both have left", || server.gate.held() == 0).await;
}

/// What comes until it holds `mark`.
async fn read_to(stream: &mut TcpStream, mark: &str) -> String {
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains(mark) {
        let read = stream.read_buf(&mut seen).await.unwrap();
        assert!(read > 0, "it ended: {}", String::from_utf8_lossy(&seen));
    }
    String::from_utf8_lossy(&seen).into_owned()
}
