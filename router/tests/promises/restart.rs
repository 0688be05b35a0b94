//! Routers that go down, as asked or not.

use futures::future::join_all;
use serde_json::json;

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
async fn a_drain_ends_at_its_limit() {
    let worker = FakeWorker::start().await;
    let router = Process::start(router(&[&worker]).with("--drain-timeout=0.6")).await;
    let stream = begin(
        router.address,
        chat(&json!({"stream": true, "gap_ms": 60_000})),
    )
    .await;
    router.terminate().await;
    assert!(soon("the end", router.ended_well()).await);
    drop(stream);
}
