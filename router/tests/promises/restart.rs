//! Routers that go down, as asked or not.

use futures::future::join_all;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::client::{Client, ask, begin, chat, request};
use crate::support::process::Process;
use crate::support::{FakeWorker, eventually, router, soon};

const LONG: &str = r#"{"stream": true, "events": 20, "gap_ms": 100}"#;

fn long() -> http::Request<http_body_util::Full<bytes::Bytes>> {
    chat(&serde_json::from_str(LONG).unwrap())
}

#[tokio::test]
async fn a_rolling_restart_breaks_no_stream() {
    let worker = FakeWorker::with_slots(64).await;
    let old = Process::start(router(&[&worker]).with("--settle=2")).await;
    let streams = join_all((0..20).map(|_| begin(old.address, long()))).await;
    let new = Process::start(router(&[&worker])).await;
    let ready = ask(old.admin_address, request("GET", "/readyz", "")).await;
    assert_eq!((ready.status.as_u16(), ready.text()), (200, "ok\n"));
    old.terminate().await;
    eventually("the old one is not ready", async || {
        ask(old.admin_address, request("GET", "/readyz", ""))
            .await
            .status
            == 503
    })
    .await;
    let served = ask(old.address, chat(&json!({}))).await;
    assert_eq!(
        served.status, 200,
        "new requests are served while it settles"
    );
    assert_eq!(served.headers["connection"], "close");
    eventually("the old one refuses connections", async || {
        Client::try_connect(old.address).await.is_err()
    })
    .await;
    assert_eq!(ask(new.address, chat(&json!({}))).await.status, 200);
    for reply in join_all(streams.into_iter().map(|stream| stream.whole())).await {
        assert!(reply.whole);
        assert_eq!(reply.events().len(), 21);
    }
    assert!(old.ended_well().await);
}

#[tokio::test]
async fn killing_one_of_two_replicas_touches_only_its_own_streams() {
    let worker = FakeWorker::with_slots(64).await;
    let mut doomed = Process::start(router(&[&worker])).await;
    let other = Process::start(router(&[&worker])).await;
    let endless = json!({"stream": true, "gap_ms": 60_000});
    let lost = join_all((0..5).map(|_| begin(doomed.address, chat(&endless)))).await;
    let kept = join_all((0..5).map(|_| begin(other.address, long()))).await;
    doomed.kill().await;
    for reply in join_all(lost.into_iter().map(|stream| stream.whole())).await {
        assert!(!reply.whole);
    }
    for reply in join_all(kept.into_iter().map(|stream| stream.whole())).await {
        assert_eq!(reply.events().len(), 21);
    }
    eventually("the worker is free of the lost ones", async || {
        worker.left() == 5
    })
    .await;
    assert_eq!(ask(other.address, chat(&json!({}))).await.status, 200);
}

#[tokio::test]
async fn a_drain_ends_at_its_limit_and_tells_everyone_who_is_left() {
    let worker = FakeWorker::start().await;
    let flags = router(&[&worker])
        .with("--drain-timeout=0.6")
        .with("--keep-alive=0.1");
    let router = Process::start(flags).await;
    let begun = json!({"stream": true, "gap_ms": 60_000});
    let begun = begin(router.address, chat(&begun)).await;
    let held = json!({"stream": true, "first_ms": 60_000});
    let held = begin(router.address, chat(&held)).await;
    let waiting = json!({"first_ms": 60_000});
    let waiting = tokio::spawn(ask(router.address, chat(&waiting)));
    eventually("all are at the worker", async || worker.hits() == 3).await;
    router.terminate().await;
    for (stream, events) in [(begun, 2), (held, 1)] {
        let reply = soon("the end", stream.whole()).await;
        assert!(reply.whole, "{}", reply.text());
        let seen = reply.events();
        assert_eq!(seen.len(), events, "{seen:?}");
        let error: serde_json::Value = serde_json::from_str(&seen[events - 1]).unwrap();
        assert_eq!(error["error"]["code"], "draining");
    }
    let refused = waiting.await.unwrap();
    assert_eq!(
        (refused.status.as_u16(), refused.code().as_str()),
        (503, "draining")
    );
    assert!(router.ended_well().await);
    eventually("the worker was told", async || worker.left() == 3).await;
}

#[tokio::test]
async fn a_body_that_still_comes_at_the_end_of_a_drain_is_refused() {
    let worker = FakeWorker::start().await;
    let router = Process::start(router(&[&worker]).with("--drain-timeout=0.6")).await;
    let mut stream = TcpStream::connect(router.address).await.unwrap();
    stream
        .write_all(b"POST /v1/completions HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\n{")
        .await
        .unwrap();
    router.terminate().await;
    let mut answer = String::new();
    soon("an answer", stream.read_to_string(&mut answer))
        .await
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("\"draining\""), "{answer}");
    assert!(router.ended_well().await);
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let worker = FakeWorker::start().await;
    let router = Process::start(router(&[&worker])).await;
    let endless = json!({"stream": true, "gap_ms": 60_000});
    let _stream = begin(router.address, chat(&endless)).await;
    router.terminate().await;
    eventually("it drains", async || {
        let ready = ask(router.admin_address, request("GET", "/readyz", "")).await;
        ready.status == 503
    })
    .await;
    router.terminate().await;
    assert!(!router.ended_well().await);
}
