//! Requests that are wrong get a clear 4xx within its time limit, and leave
//! nothing behind.

use std::time::Duration;

use llava_router::Router;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedReadHalf;
use tokio_util::task::AbortOnDropHandle;

use crate::support::client::{ask, body, chat, request};
use crate::support::router::{in_flight, metric};
use crate::support::{FakeWorker, eventually, router, soon};

#[tokio::test]
async fn malformed_json_a_missing_model_and_an_unknown_one_are_told_apart() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).start().await;
    for (text, status, code) in [
        ("", 400, "invalid_json"),
        ("{\"model\":\"m\"", 400, "invalid_json"),
        ("[]", 400, "invalid_json"),
        ("{\"messages\":[]}", 400, "missing_model"),
        ("{\"model\":[]}", 400, "missing_model"),
        ("{\"model\":\"other\"}", 404, "model_not_found"),
    ] {
        let reply = ask(
            router.address,
            request("POST", "/v1/chat/completions", text),
        )
        .await;
        assert_eq!(
            (reply.status.as_u16(), reply.code().as_str()),
            (status, code),
            "{text}"
        );
    }
    for (method, path, status) in [
        ("POST", "/v1/nothing", 404),
        ("GET", "/workers", 404),
        ("GET", "/metrics", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
    ] {
        let reply = ask(router.address, request(method, path, "")).await;
        assert_eq!(reply.status, status, "{method} {path}");
        assert!(reply.json()["error"]["message"].is_string());
    }
    assert_eq!(worker.hits(), 0);
}

#[tokio::test]
async fn a_body_of_33_mib_is_refused_with_or_without_a_length() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).start().await;
    let huge = body(&json!({"filler": "x".repeat(33 << 20)}));
    let reply = ask(
        router.address,
        request("POST", "/v1/completions", huge.clone()),
    )
    .await;
    assert_eq!(
        (reply.status.as_u16(), reply.code().as_str()),
        (413, "body_too_large")
    );

    let mut stream = TcpStream::connect(router.address).await.unwrap();
    stream
        .write_all(
            b"POST /v1/completions HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n",
        )
        .await
        .unwrap();
    for piece in huge.as_bytes().chunks(1 << 20) {
        stream
            .write_all(format!("{:x}\r\n", piece.len()).as_bytes())
            .await
            .unwrap();
        stream.write_all(piece).await.unwrap();
        stream.write_all(b"\r\n").await.unwrap();
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    assert!(first_line(&mut stream).await.contains(" 413 "));
    assert_eq!(worker.hits(), 0);
    assert_eq!(
        metric(&router, "llava_router_buffered_bytes", "").await,
        0.0
    );
}

#[tokio::test]
async fn all_bodies_together_are_bounded() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).with("--max-buffered=1MiB").start().await;
    let reply = ask(
        router.address,
        chat(&json!({"filler": "x".repeat(2 << 20)})),
    )
    .await;
    assert_eq!(
        (reply.status.as_u16(), reply.code().as_str()),
        (503, "buffers_full")
    );
    assert!(reply.headers.contains_key("retry-after"));
    assert_eq!(
        metric(&router, "llava_router_buffers_full_total", "").await,
        1.0
    );
    assert_eq!(ask(router.address, chat(&json!({}))).await.status, 200);
}

#[tokio::test]
async fn five_hundred_headers_are_refused() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).start().await;
    let mut stream = TcpStream::connect(router.address).await.unwrap();
    let mut head = "GET /v1/models HTTP/1.1\r\nhost: h\r\n".to_owned();
    for number in 0..500 {
        head += &format!("x-{number}: 1\r\n");
    }
    head += "\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    assert!(first_line(&mut stream).await.contains(" 431 "));
}

#[tokio::test]
async fn a_slow_head_and_a_slow_body_are_cut_off_with_408() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker])
        .with("--header-timeout=0.3")
        .with("--body-timeout=0.3")
        .start()
        .await;
    for start in [
        "POST /v1/completions HTTP/1.1\r\nho",
        "POST /v1/completions HTTP/1.1\r\nhost: h\r\ncontent-length: 100\r\n\r\n{\"mod",
    ] {
        let mut stream = TcpStream::connect(router.address).await.unwrap();
        stream.write_all(start.as_bytes()).await.unwrap();
        let since = tokio::time::Instant::now();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(since.elapsed() < Duration::from_secs(2));
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 408 "), "{start}: {head}");
        let length = format!("content-length: {}", body.len());
        assert!(head.contains(&length), "{start}: {answer}");
        let error: Value = serde_json::from_str(body).unwrap();
        assert_eq!(error["error"]["type"], "invalid_request_error", "{body}");
    }
    eventually("the connections are closed", async || {
        metric(&router, "llava_router_connections", "").await == 0.0
    })
    .await;
    assert_eq!((in_flight(&router).await, worker.hits()), (0, 0));
}

#[tokio::test]
async fn a_body_that_drips_is_cut_off_long_before_its_request_is() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).with("--body-timeout=0.5").start().await;
    let mut dripping = Dripping::start(&router, 10_000, "{\"").await;
    let mut answer = Vec::new();
    soon("an answer", async {
        // The connection ends with a reset, as more drips into it.
        while let Ok(1..) = dripping.answer.read_buf(&mut answer).await {}
    })
    .await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 408 "), "{head}");
    let error: Value = serde_json::from_str(body).unwrap();
    assert_eq!(error["error"]["code"], "body_timeout");
    // Half a second at 1 KiB a second.
    let message = error["error"]["message"].as_str().unwrap();
    assert!(message.contains("at least 512 are asked for"), "{message}");
    let held = metric(&router, "llava_router_buffered_bytes", "").await;
    assert_eq!((held, worker.hits()), (0.0, 0));
}

#[tokio::test]
async fn a_body_that_drips_has_no_more_than_the_time_of_its_request() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker])
        .with("--request-timeout=0.5")
        .start()
        .await;
    // One that is wanted, one that is wrong, one that is too long: of these the rest is read
    // and thrown away.
    for (length, start, status) in [
        (10_000, "{\"", 408),
        (10_000, "]", 400),
        (33 << 20, "{", 413),
    ] {
        let mut dripping = Dripping::start(&router, length, start).await;
        let mut answer = [0; "HTTP/1.1 000".len()];
        soon("an answer", dripping.answer.read_exact(&mut answer))
            .await
            .unwrap();
        assert_eq!(answer, format!("HTTP/1.1 {status}").as_bytes());
    }
    let held = metric(&router, "llava_router_buffered_bytes", "").await;
    assert_eq!((held, worker.hits()), (0.0, 0));
}

/// A request whose body goes on byte by byte, until this is dropped.
struct Dripping {
    answer: OwnedReadHalf,
    _body: AbortOnDropHandle<()>,
}

impl Dripping {
    async fn start(router: &Router, length: usize, start: &str) -> Self {
        let stream = TcpStream::connect(router.address).await.unwrap();
        let (answer, mut writing) = stream.into_split();
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: h\r\ncontent-length: {length}\r\n\r\n{start}"
        );
        let body = tokio::spawn(async move {
            writing.write_all(head.as_bytes()).await.unwrap();
            let mut beat = tokio::time::interval(Duration::from_millis(20));
            while writing.write_all(b" ").await.is_ok() {
                beat.tick().await;
            }
        });
        Self {
            answer,
            _body: AbortOnDropHandle::new(body),
        }
    }
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker])
        .with("--header-timeout=0.2")
        .start()
        .await;
    for said in SAYS_NOTHING {
        let mut stream = TcpStream::connect(router.address).await.unwrap();
        stream.write_all(said).await.unwrap();
        let mut rest = Vec::new();
        // A reset, where bytes were left unread.
        let _ = soon("the close", stream.read_to_end(&mut rest)).await;
        let is_http2 = said.len() >= SAYS_NOTHING[2].len();
        assert_eq!(rest.is_empty(), !is_http2, "{rest:?}");
    }
}

#[tokio::test]
async fn a_connection_that_says_nothing_holds_up_no_drain() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).start().await;
    let mut open = Vec::new();
    for said in SAYS_NOTHING {
        let mut stream = TcpStream::connect(router.address).await.unwrap();
        stream.write_all(said).await.unwrap();
        open.push(stream);
    }
    eventually("all are open", async || {
        let connections = metric(&router, "llava_router_connections", "").await;
        connections as usize == SAYS_NOTHING.len()
    })
    .await;
    soon("the drain", router.drain()).await;
}

#[tokio::test]
async fn who_writes_all_before_reading_comes_to_read_why_it_is_refused() {
    let worker = FakeWorker::start().await;
    let keys = tempfile::NamedTempFile::new().unwrap();
    let keyless = format!("--api-keys={}", keys.path().display());
    for (flag, path, status) in [
        (keyless.as_str(), "/v1/chat/completions", 401),
        ("--no-page", "/v1/embeddings", 404),
        ("--no-page", "/v1/models", 405),
        ("--no-page", "/register_worker", 410),
        ("--max-buffered=64KiB", "/v1/chat/completions", 503),
    ] {
        let router = router(&[&worker]).with(flag).start().await;
        let text = body(&json!({"filler": "x".repeat(5 << 20)}));
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: h\r\ncontent-length: {}\r\n\r\n",
            text.len()
        );
        let mut stream = TcpStream::connect(router.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let line = first_line(&mut stream).await;
        assert!(line.contains(&format!(" {status} ")), "{line}");
    }
    assert_eq!(worker.hits(), 0);
}

#[tokio::test]
async fn chunks_that_are_none_are_the_callers_fault_and_nobody_is_taken_to_have_left() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).start().await;
    let mut stream = TcpStream::connect(router.address).await.unwrap();
    let text = "POST /v1/completions HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\nx";
    stream.write_all(text.as_bytes()).await.unwrap();
    assert!(first_line(&mut stream).await.contains(" 400 "));
    let left = metric(&router, "llava_router_caller_aborts_outside_total", "").await;
    assert_eq!((left, worker.hits()), (0.0, 0));
}

/// Nothing, and no more than that it is HTTP/2: a part of its preface, all of it, and an
/// empty frame of settings after it.
const SAYS_NOTHING: [&[u8]; 4] = [
    b"",
    b"PRI ",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
];

async fn first_line(stream: &mut TcpStream) -> String {
    let mut seen = Vec::new();
    soon("an answer", async {
        let mut some = [0; 256];
        while !seen.contains(&b'\n') {
            let got = stream.read(&mut some).await.unwrap();
            assert!(got > 0, "closed without a word");
            seen.extend_from_slice(&some[..got]);
        }
    })
    .await;
    String::from_utf8_lossy(&seen)
        .lines()
        .next()
        .unwrap()
        .to_owned()
}
