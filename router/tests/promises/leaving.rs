//! Callers that leave free what they held at once, in every phase.

use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::support::client::{Client, begin, body, chat};
use crate::support::router::{in_flight, metric};
use crate::support::{FakeWorker, eventually, router};

/// Far less than until any timer would notice, far more than a busy machine may take.
const LIMIT: Duration = Duration::from_secs(5);

async fn frees_within_limit(what: &str, worker: &FakeWorker, left_before: usize) {
    let since = tokio::time::Instant::now();
    eventually(what, async || worker.left() > left_before).await;
    assert!(since.elapsed() < LIMIT, "{what} took {:?}", since.elapsed());
}

#[tokio::test]
async fn leaving_before_the_first_byte_frees_the_slot() {
    for stream in [true, false] {
        let worker = FakeWorker::start().await;
        let router = router(&[&worker]).start().await;
        let client = Client::connect(router.address).await;
        let waiting =
            tokio::spawn(client.send(chat(&json!({"stream": stream, "first_ms": 60_000}))));
        eventually("the request is at the worker", async || worker.hits() == 1).await;
        waiting.abort();
        // A fake worker notices at its next wait on the connection.
        let since = tokio::time::Instant::now();
        eventually("the slot is free", async || in_flight(&router).await == 0).await;
        assert!(since.elapsed() < LIMIT, "{:?}", since.elapsed());
        frees_within_limit("the worker was told", &worker, 0).await;
        assert_eq!(
            metric(&router, "llava_router_caller_aborts_total", "first_byte").await,
            1.0
        );
    }
}

#[tokio::test]
async fn leaving_between_two_events_frees_the_slot() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).start().await;
    let mut coming = begin(
        router.address,
        chat(&json!({"stream": true, "gap_ms": 60_000})),
    )
    .await;
    coming.next().await.unwrap().unwrap();
    drop(coming);
    frees_within_limit("the worker was told", &worker, 0).await;
    eventually("the slot is free", async || in_flight(&router).await == 0).await;
    assert_eq!(
        metric(&router, "llava_router_caller_aborts_total", "stream").await,
        1.0
    );
}

#[tokio::test]
async fn resetting_one_stream_of_an_http_2_connection_frees_its_slot_alone() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).start().await;
    let stream = TcpStream::connect(router.address).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io)
        .await
        .unwrap();
    let _driver = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut sent = chat(&json!({"stream": true, "events": 2, "gap_ms": 60_000}));
        sent.headers_mut().remove("host");
        *sent.uri_mut() = "http://router.test/v1/chat/completions".parse().unwrap();
        streams.push(sender.send_request(sent).await.unwrap());
    }
    assert_eq!(in_flight(&router).await, 3);
    streams.pop();
    frees_within_limit("a reset stream", &worker, 0).await;
    assert_eq!(in_flight(&router).await, 2);
    assert_eq!(worker.left(), 1);
}

#[tokio::test]
async fn leaving_the_queue_gives_the_place_to_the_next() {
    let worker = FakeWorker::with_slots(1).await;
    let router = router(&[&worker]).start().await;
    // A slot and the headroom of one.
    let first = begin(
        router.address,
        chat(&json!({"stream": true, "events": 2, "gap_ms": 60_000})),
    )
    .await;
    let at_worker = tokio::spawn(Client::connect(router.address).await.send(chat(&json!({}))));
    eventually("the worker is full", async || worker.hits() == 2).await;
    let queued = tokio::spawn(Client::connect(router.address).await.send(chat(&json!({}))));
    let waiting = async || metric(&router, "llava_router_waiting{", "").await;
    eventually("one waits", async || waiting().await == 1.0).await;
    queued.abort();
    let since = tokio::time::Instant::now();
    eventually("nobody waits", async || waiting().await == 0.0).await;
    assert!(since.elapsed() < LIMIT);
    assert_eq!(
        metric(&router, "llava_router_caller_aborts_total", "queued").await,
        1.0
    );
    drop(first);
    assert_eq!(at_worker.await.unwrap().unwrap().status, 200);
    assert_eq!(worker.hits(), 2);
}

#[tokio::test]
async fn leaving_a_stream_that_began_while_it_waited_gives_up_its_place() {
    let worker = FakeWorker::with_slots(1).await;
    let router = router(&[&worker]).with("--keep-alive=0.1").start().await;
    let long = chat(&json!({"stream": true, "events": 2, "gap_ms": 60_000}));
    let _first = begin(router.address, long.clone()).await;
    let _second = begin(router.address, long.clone()).await;
    // Its head comes with the first comment, its slot never.
    let third = begin(router.address, long).await;
    let waiting = async || metric(&router, "llava_router_waiting{", "").await;
    assert_eq!(waiting().await, 1.0);
    drop(third);
    let since = tokio::time::Instant::now();
    eventually("nobody waits", async || waiting().await == 0.0).await;
    assert!(since.elapsed() < LIMIT, "{:?}", since.elapsed());
    let queued = metric(&router, "llava_router_caller_aborts_total", "queued").await;
    assert_eq!((queued, worker.hits()), (1.0, 2));
}

#[tokio::test]
async fn leaving_in_the_middle_of_a_body_frees_its_bytes_and_is_counted() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).start().await;
    let mut stream = TcpStream::connect(router.address).await.unwrap();
    let text = body(&json!({"filler": "x".repeat(500_000)}));
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n",
        text.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&text.as_bytes()[..300_000]).await.unwrap();
    let held = async || metric(&router, "llava_router_buffered_bytes", "").await;
    eventually("the bytes are held", async || held().await >= 300_000.0).await;
    drop(stream);
    let since = tokio::time::Instant::now();
    eventually("the bytes are free", async || held().await == 0.0).await;
    assert!(since.elapsed() < LIMIT);
    assert_eq!(worker.hits(), 0);
    let outside = "llava_router_requests_outside_total{code=\"499\"}";
    for counted in ["llava_router_caller_aborts_outside_total", outside] {
        assert_eq!(metric(&router, counted, "").await, 1.0, "{counted}");
    }
}
