//! LLaVA's own clients find their controller here.

use bytes::Bytes;
use protocol::llava::Chunk;
use serde_json::json;

use crate::support::client::{ask, body, request};
use crate::support::worker::event;
use crate::support::{FakeWorker, Reply, router};

fn chunks(reply: &Reply) -> Vec<Chunk> {
    let mut decoder = protocol::nul::Decoder::default();
    decoder.push(&reply.body);
    std::iter::from_fn(|| decoder.next_payload())
        .map(|payload| serde_json::from_slice(&payload).unwrap())
        .collect()
}

fn post(path: &str, body: impl Into<Bytes>) -> http::Request<http_body_util::Full<Bytes>> {
    request("POST", path, body)
}

#[tokio::test]
async fn the_controllers_questions_are_answered() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).start().await;
    let reply = ask(router.address, post("/list_models", "")).await;
    assert_eq!(reply.body, r#"{"models":["m"]}"#);
    let reply = ask(
        router.address,
        post("/get_worker_address", r#"{"model":"m"}"#),
    )
    .await;
    assert_eq!(reply.body, r#"{"address":"http://router.test"}"#);
    let reply = ask(
        router.address,
        post("/get_worker_address", r#"{"model":"other"}"#),
    )
    .await;
    assert_eq!(reply.body, r#"{"address":""}"#);
    let reply = ask(router.address, post("/worker_get_status", "")).await;
    assert_eq!(
        reply.body,
        r#"{"model_names":["m"],"speed":1,"queue_length":0}"#
    );
    let reply = ask(router.address, post("/refresh_all_workers", "")).await;
    assert_eq!(
        (reply.status.as_u16(), &reply.body[..]),
        (200, &b"null"[..])
    );
    for gone in ["/register_worker", "/receive_heart_beat"] {
        let reply = ask(router.address, post(gone, "{}")).await;
        assert_eq!(
            (reply.status.as_u16(), reply.code().as_str()),
            (410, "gone")
        );
    }
}

#[tokio::test]
async fn a_stream_comes_in_zero_terminated_frames() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).start().await;
    let reply = ask(
        router.address,
        post("/worker_generate_stream", body(&json!({"events": 3}))),
    )
    .await;
    assert_eq!(reply.status, 200);
    let want: Vec<u8> = (0..3).flat_map(|n| event(n, 0, true)).collect();
    assert_eq!(reply.body, want);
}

#[tokio::test]
async fn what_goes_wrong_is_told_by_its_code() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).start().await;
    let broken = body(&json!({"events": 3, "die_after": 2, "gap_ms": 20}));
    let reply = ask(router.address, post("/worker_generate_stream", broken)).await;
    let codes: Vec<u8> = chunks(&reply)
        .iter()
        .map(|chunk| chunk.error_code)
        .collect();
    assert_eq!((reply.whole, codes), (true, vec![0, 0, 3]));

    let unknown = r#"{"model":"other","prompt":"p"}"#;
    let reply = ask(router.address, post("/worker_generate_stream", unknown)).await;
    let seen = chunks(&reply);
    assert_eq!(
        (reply.status.as_u16(), seen.len(), seen[0].error_code),
        (200, 1, 2)
    );
    assert!(seen[0].text.starts_with(protocol::llava::SERVER_ERROR));

    worker.kill();
    let reply = ask(
        router.address,
        post("/worker_generate_stream", body(&json!({}))),
    )
    .await;
    assert_eq!(chunks(&reply)[0].error_code, 3);
}
