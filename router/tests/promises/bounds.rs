//! Memory that stays bounded, whoever is slow.

use std::net::SocketAddr;
use std::time::Duration;

use futures::future::join_all;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::support::client::{begin, body, chat};
use crate::support::process::Process;
use crate::support::router::{in_flight, metric};
use crate::support::{FakeWorker, eventually, router, soon};

const MIB: u64 = 1 << 20;

#[tokio::test]
async fn a_stream_that_says_nothing_costs_less_than_20_kib() {
    const STREAMS: u64 = 200;
    let worker = FakeWorker::with_slots(512).await;
    let router = Process::start(router(&[&worker])).await;
    let open = async |count| {
        let silent = chat(&json!({"stream": true, "gap_ms": 600_000}));
        join_all((0..count).map(|_| begin(router.address, silent.clone()))).await
    };
    // The first ones also pay for what all share.
    let _first = open(100).await;
    let before = router.memory();
    let _streams = open(STREAMS).await;
    let each = router.memory().saturating_sub(before) / STREAMS;
    assert!(each < 20 * 1024, "{each} bytes each");
}

#[tokio::test]
async fn twenty_slow_readers_of_16_mb_cost_less_than_20_mib() {
    let worker = FakeWorker::with_slots(32).await;
    let router = Process::start(router(&[&worker])).await;
    let before = router.memory();
    let mut readers = Vec::new();
    for _ in 0..20 {
        readers.push(slow_reader(router.address, 1000).await);
    }
    // Each reads a little, again and again.
    let mut most = 0;
    for _ in 0..40 {
        for reader in &mut readers {
            let mut some = [0; 4096];
            soon("some bytes", reader.read_exact(&mut some))
                .await
                .unwrap();
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
        most = most.max(router.memory());
    }
    let grown = most.saturating_sub(before);
    assert!(grown < 20 * MIB, "{} MiB", grown / MIB);
}

/// A caller with room for little, whose answer of that many large events has begun.
async fn slow_reader(address: SocketAddr, events: usize) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    // Not less than the loopback's segments of 64 KiB: a smaller window opens only when the
    // sender's timer asks, which waits longer each time.
    socket.set_recv_buffer_size(64 * 1024).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    let text = body(&json!({"stream": true, "events": events, "bytes": 16_000}));
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n",
        text.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    stream.readable().await.unwrap();
    stream
}

#[tokio::test]
async fn a_reader_that_takes_a_little_now_and_then_has_no_more_than_the_time_of_its_request() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).with("--request-timeout=1").start().await;
    let mut reader = slow_reader(router.address, 4000).await;
    assert_eq!(in_flight(&router).await, 1);
    eventually("its slot is free", async || {
        let _ = soon("some bytes", reader.read(&mut [0; 1024])).await;
        in_flight(&router).await == 0
    })
    .await;
    eventually("the worker was told", async || worker.left() == 1).await;
}

#[tokio::test]
async fn a_caller_that_never_opens_its_window_is_cut_off() {
    let worker = FakeWorker::start().await;
    // One has its first byte; of the other only a comment is there.
    let wishes = [
        json!({"stream": true, "events": 2, "gap_ms": 60_000}),
        json!({"stream": true, "first_ms": 60_000}),
    ];
    for (cut, flag) in ["--request-timeout=0.5", "--write-timeout=0.5"]
        .into_iter()
        .enumerate()
    {
        let router = router(&[&worker])
            .with("--keep-alive=0.1")
            .with(flag)
            .start()
            .await;
        let io = TokioIo::new(TcpStream::connect(router.address).await.unwrap());
        let (mut sender, connection) = http2::Builder::new(TokioExecutor::new())
            .initial_stream_window_size(0_u32)
            .handshake(io)
            .await
            .unwrap();
        let _driver = AbortOnDropHandle::new(tokio::spawn(connection));
        let mut heads = Vec::new();
        for wish in &wishes {
            let mut sent = chat(wish);
            sent.headers_mut().remove("host");
            *sent.uri_mut() = "http://router.test/v1/chat/completions".parse().unwrap();
            let head = soon("the head of an answer", sender.send_request(sent)).await;
            heads.push(head.unwrap());
        }
        eventually("the worker was told", async || worker.left() == 2 * cut + 2).await;
        assert_eq!(in_flight(&router).await, 0, "{flag}");
    }
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_cut_off() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).with("--write-timeout=0.3").start().await;
    let stuck = begin(
        router.address,
        chat(&json!({"stream": true, "events": 4000, "bytes": 16_000})),
    )
    .await;
    eventually("its slot is free", async || in_flight(&router).await == 0).await;
    assert_eq!(
        metric(&router, "llava_router_caller_aborts_total", "stream").await,
        1.0
    );
    drop(stuck);
}

#[tokio::test]
async fn a_worker_that_falls_silent_ends_in_an_error_event() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).with("--chunk-timeout=0.2").start().await;
    let coming = begin(
        router.address,
        chat(&json!({"stream": true, "gap_ms": 60_000})),
    )
    .await;
    let reply = soon("the end", coming.whole()).await;
    assert!(
        reply.events()[1].contains("chunk_timeout"),
        "{}",
        reply.text()
    );
    eventually("the worker was told", async || worker.left() == 1).await;
}

#[tokio::test]
async fn the_client_may_ask_for_less_time() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).start().await;
    let mut request = chat(&json!({"first_ms": 60_000}));
    request
        .headers_mut()
        .insert("x-request-timeout", "0.2".parse().unwrap());
    let reply = crate::support::client::ask(router.address, request).await;
    assert_eq!(
        (reply.status.as_u16(), reply.code().as_str()),
        (504, "request_timeout")
    );
    eventually("the worker was told", async || worker.left() == 1).await;
}
