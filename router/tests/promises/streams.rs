//! What comes through a healthy router is what the worker sent.

use serde_json::json;

use crate::support::client::{ask, begin, body, chat, request};
use crate::support::router::{heard_of_all, in_flight, metric, rows};
use crate::support::worker::event;
use crate::support::{FakeWorker, eventually, router};

#[tokio::test]
async fn a_stream_arrives_byte_for_byte_and_event_by_event() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).start().await;
    let mut coming = begin(
        router.address,
        chat(&json!({"stream": true, "events": 4, "gap_ms": 50})),
    )
    .await;
    assert_eq!(coming.headers["content-type"], "text/event-stream");
    assert_eq!(coming.headers["x-accel-buffering"], "no");
    let mut pieces = Vec::new();
    while let Some(piece) = coming.next().await {
        pieces.push(piece.unwrap());
    }
    let whole: Vec<u8> = pieces.concat();
    let mut want: Vec<u8> = (0..4).flat_map(|n| event(n, 0, false)).collect();
    want.extend_from_slice(b"data: [DONE]\n\n");
    assert_eq!(whole, want);
    assert!(pieces.len() >= 4, "events were held back: {pieces:?}");
    assert_eq!(in_flight(&router).await, 0);
}

#[tokio::test]
async fn the_callers_bytes_reach_the_worker_untouched() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).start().await;
    let odd = "{ \"model\":\"m\",\t\"unknown\" : [1e0, \"\\u00e9\"], \"model\":\"m\" }";
    let mut sent = request("POST", "/v1/completions?x=1", odd);
    for (name, value) in [
        ("authorization", "Bearer secret"),
        (
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
        ("x-request-id", "mine"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
    ] {
        sent.headers_mut().append(name, value.parse().unwrap());
    }
    let reply = ask(router.address, sent).await;
    assert_eq!(reply.status, 200);
    assert_eq!(reply.headers["x-request-id"], "mine");
    assert!(!reply.headers.contains_key("x-llava-load"));
    let (body, headers) = worker.last();
    assert_eq!(body, odd);
    assert_eq!(headers["x-request-id"], "mine");
    assert_eq!(
        headers["traceparent"],
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    );
    for absent in ["authorization", "x-hop", "connection"] {
        assert!(!headers.contains_key(absent), "{absent} went on");
    }
}

#[tokio::test]
async fn a_large_body_arrives_whole() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).start().await;
    let image = format!("data:image/png;base64,{}", "iVBORw0KGgo".repeat(900_000));
    let sent = body(&json!({"image": image}));
    let reply = ask(
        router.address,
        request("POST", "/v1/chat/completions", sent.clone()),
    )
    .await;
    assert_eq!(reply.status, 200);
    assert_eq!(worker.last().0, sent);
}

#[tokio::test]
async fn a_large_answer_of_known_length_comes_whole_and_nobody_is_taken_to_have_left() {
    const BYTES: usize = 300_000;
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).start().await;
    for _ in 0..3 {
        let reply = ask(router.address, chat(&json!({"bytes": BYTES}))).await;
        let length: usize = reply.headers["content-length"]
            .to_str()
            .unwrap()
            .parse()
            .unwrap();
        assert!(reply.whole && reply.body.len() == length && length > BYTES);
    }
    let left = metric(&router, "llava_router_caller_aborts_total", "").await;
    let whole = metric(&router, "llava_router_request_duration_seconds_count", "").await;
    assert_eq!((left, whole), (0.0, 3.0));
}

#[tokio::test]
async fn a_silent_stream_is_kept_alive_by_comments() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).with("--keep-alive=0.1").start().await;
    let silent = json!({"stream": true, "first_ms": 350, "events": 2, "gap_ms": 350});
    let reply = ask(router.address, chat(&silent)).await;
    let text = reply.text();
    let comments = text.matches(": keep-alive\n\n").count();
    assert!((4..=8).contains(&comments), "{text}");
    assert_eq!(reply.events().len(), 3);
    assert_eq!(reply.headers["content-type"], "text/event-stream");
}

#[tokio::test]
async fn a_stream_of_known_length_has_room_for_comments() {
    const BYTES: usize = 40_000;
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).with("--keep-alive=0.1").start().await;
    for path in ["/v1/chat/completions", "/worker_generate_stream"] {
        let is_llava = path == "/worker_generate_stream";
        let wish = json!({"stream": true, "bytes": BYTES, "gap_ms": 350, "sized": true});
        let reply = ask(router.address, request("POST", path, body(&wish))).await;
        assert!(reply.whole && !reply.headers.contains_key("content-length"));
        let last = event(2, BYTES, is_llava);
        let mut end = last.to_vec();
        if !is_llava {
            end.extend_from_slice(b"data: [DONE]\n\n");
        }
        assert!(reply.body.ends_with(&end));
        assert!(reply.body.len() > 3 * last.len() + end.len() - last.len());
    }
}

#[tokio::test]
async fn an_error_of_any_length_ends_a_stream_that_began_in_one_error_event() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).with("--keep-alive=0.1").start().await;
    for (bytes, unsized_error, code) in [
        (0, false, "wished_500"),
        (0, true, "wished_500"),
        (100_000, false, "worker_error"),
        (100_000, true, "worker_error"),
    ] {
        let wish = json!({
            "stream": true, "status": 500, "first_ms": 300,
            "bytes": bytes, "unsized_error": unsized_error
        });
        let reply = ask(router.address, chat(&wish)).await;
        assert_eq!(reply.status, 200);
        assert!(reply.text().starts_with(": keep-alive\n\n"));
        let [event] = &reply.events()[..] else {
            panic!("{}", reply.text());
        };
        let event: serde_json::Value = serde_json::from_str(event).unwrap();
        assert_eq!(event["error"]["code"], code);
    }
    let left = metric(&router, "llava_router_caller_aborts_total", "").await;
    assert!(left == 0.0, "{left} were taken to have left");
}

#[tokio::test]
async fn http_2_without_tls_is_understood() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).start().await;
    let stream = tokio::net::TcpStream::connect(router.address)
        .await
        .unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io)
        .await
        .unwrap();
    let driver = tokio::spawn(connection);
    let mut sent = chat(&json!({"stream": true}));
    sent.headers_mut().remove("host");
    *sent.uri_mut() = "http://router.test/v1/chat/completions".parse().unwrap();
    let reply = sender.send_request(sent).await.unwrap();
    assert_eq!(reply.version(), http::Version::HTTP_2);
    let bytes = http_body_util::BodyExt::collect(reply.into_body())
        .await
        .unwrap()
        .to_bytes();
    assert!(bytes.ends_with(b"data: [DONE]\n\n"));
    driver.abort();
}

#[tokio::test]
async fn requests_spread_over_idle_workers() {
    let workers = [
        FakeWorker::start().await,
        FakeWorker::start().await,
        FakeWorker::start().await,
    ];
    let router = router(&workers.iter().collect::<Vec<_>>())
        .with("--poll-interval=60")
        .start()
        .await;
    heard_of_all(&router).await;
    let mut streams = Vec::new();
    for _ in 0..12 {
        streams.push(
            begin(
                router.address,
                chat(&json!({"stream": true, "events": 2, "gap_ms": 400})),
            )
            .await,
        );
    }
    for row in rows(&router).await {
        assert_eq!(row["inFlight"], 4, "{row}");
    }
    for stream in streams {
        assert_eq!(stream.whole().await.events().len(), 3);
    }
    eventually("all slots are free", async || in_flight(&router).await == 0).await;
}
