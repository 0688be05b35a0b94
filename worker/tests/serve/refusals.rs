//! Bad requests get a clear answer, and too many get one too.

use futures::future::join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::troubles;
use crate::worker::{Worker, ask, base64};

#[tokio::test]
async fn every_wrong_request_names_what_is_wrong() {
    let worker = Worker::start(&[
        "--max-images",
        "2",
        "--max-prompt-characters",
        "500",
        "--max-body-bytes",
        "100000",
    ])
    .await;
    let parts =
        |parts: Value| json!({"messages": [{"role": "user", "content": parts}]}).to_string();
    let with =
        |field: &str| format!(r#"{{{field}, "messages": [{{"role": "user", "content": "x"}}]}}"#);
    let image = |url: &str| json!([{"type": "image_url", "image_url": url}]);
    let junk = format!("data:image/png;base64,{}", base64(b"no picture"));
    let many = json!([{"type": "image_url", "image_url": "x"}, {"type": "image_url", "image_url": "x"}, {"type": "image_url", "image_url": "x"}]);
    for (body, status, code, param) in [
        ("{".to_owned(), 400, "invalid_json", None),
        ("{}".to_owned(), 400, "invalid_value", None),
        (
            r#"{"messages": []}"#.to_owned(),
            400,
            "invalid_value",
            Some("messages"),
        ),
        (
            r#"{"model": "x", "messages": [{"role": "user"}]}"#.to_owned(),
            404,
            "model_not_found",
            Some("model"),
        ),
        (
            r#"{"messages": [{"role": "tool", "content": "x"}]}"#.to_owned(),
            400,
            "invalid_value",
            Some("messages[0].role"),
        ),
        (
            r#"{"temperature": 9, "messages": [{"role": "user", "content": "x"}]}"#.to_owned(),
            400,
            "invalid_value",
            Some("temperature"),
        ),
        (
            r#"{"tools": [{}], "messages": [{"role": "user", "content": "x"}]}"#.to_owned(),
            400,
            "unsupported_parameter",
            Some("tools"),
        ),
        (
            with(r#""tool_choice": "required""#),
            400,
            "unsupported_parameter",
            Some("tool_choice"),
        ),
        (
            with(r#""tool_choice": {"type": "function", "function": {"name": "f"}}"#),
            400,
            "unsupported_parameter",
            Some("tool_choice"),
        ),
        (
            with(r#""response_format": {"type": "json_object"}"#),
            400,
            "unsupported_parameter",
            Some("response_format"),
        ),
        (
            with(r#""response_format": {"type": "json_schema", "json_schema": {"name": "f"}}"#),
            400,
            "unsupported_parameter",
            Some("response_format"),
        ),
        (
            parts(image("https://example.com/x.png")),
            400,
            "remote_images_disabled",
            Some("messages[0].content[0].image_url"),
        ),
        (
            parts(image(&junk)),
            400,
            "image_format_unsupported",
            Some("messages[0].content[0].image_url"),
        ),
        (parts(many), 400, "too_many_images", Some("messages")),
        (
            parts(json!([{"type": "audio"}])),
            400,
            "invalid_value",
            Some("messages[0].content[0].type"),
        ),
        (
            ask(&"x".repeat(501), 1).to_string(),
            400,
            "prompt_too_long",
            Some("messages"),
        ),
        ("x".repeat(100_001), 413, "body_too_large", None),
    ] {
        let response = worker
            .post("/v1/chat/completions")
            .body(body.clone())
            .send()
            .await
            .unwrap();
        assert_eq!(response.status(), status, "{body:.100}");
        assert!(response.headers().contains_key("x-request-id"));
        let answer: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
        assert_eq!(answer["error"]["code"], code, "{body:.100}");
        if let Some(param) = param {
            assert_eq!(answer["error"]["param"], param, "{body:.100}");
        }
    }
    assert_eq!(worker.get("/metrics").await.status(), 404);
    worker.at_rest().await;
}

#[tokio::test]
async fn what_is_too_much_is_told_to_come_back() {
    let worker = Worker::start(&["--max-running-requests", "1", "--max-queue-length", "2"]).await;
    let bodies: Vec<Value> = (0..30).map(|n| ask(&format!("{n}"), 60)).collect();
    let answers = join_all(bodies.iter().map(|body| worker.chat(body))).await;
    let (mut good, mut refused) = (0, 0);
    for answer in answers {
        assert!(answer.headers().contains_key("x-llava-load"));
        if answer.status() == 200 {
            good += 1;
        } else {
            assert_eq!(answer.status(), 429);
            assert_eq!(answer.headers()["retry-after"], "1");
            assert_eq!(answer.headers()["retry-after-ms"], "1000");
            refused += 1;
        }
    }
    assert!(
        good >= 3 && refused >= 1,
        "{good} answered, {refused} refused"
    );
    worker.at_rest().await;
}

/// The status that a client reads which sends its whole body of spaces first.
async fn status_after_all(worker: &Worker, path: &str, bytes: usize) -> String {
    let mut stream = TcpStream::connect(worker.api).await.unwrap();
    let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {bytes}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![b' '; bytes]).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[9..]).into_owned()
}

#[tokio::test]
async fn who_sends_a_large_body_first_reads_why_it_was_refused_unread() {
    let flags = ["--max-running-requests", "1", "--max-queue-length", "0"];
    let worker = Worker::start(&[&flags[..], &["--max-body-bytes", "1000000"]].concat()).await;
    // More than the system's buffers take for a program that does not read.
    let large = 20 << 20;
    let chat = "/v1/chat/completions";
    assert_eq!(status_after_all(&worker, chat, large).await, "413");
    assert_eq!(status_after_all(&worker, "/nowhere", large).await, "404");
    assert_eq!(status_after_all(&worker, "/v1/models", large).await, "405");
    let mut long = ask("go on", 1800);
    long["stream"] = json!(true);
    let mut stream = worker.chat(&long).await;
    stream.chunk().await.unwrap();
    assert_eq!(status_after_all(&worker, chat, large).await, "429");
}

#[tokio::test]
async fn two_thousand_requests_of_every_kind_are_answered_right_and_leave_nothing_behind() {
    let worker = Worker::start_demo(&["--max-queue-length", "100"]).await;
    let outcome = troubles::run(&worker, 2_000).await;
    assert_eq!(outcome.wrong, Vec::<String>::new());
    assert_eq!(outcome.held, 0);
    assert_eq!(worker.metric("llava_num_requests_running", "").await, 0.0);
    assert!(
        outcome.grown < 16 << 20,
        "{} requests in {:.0} s left {} bytes",
        outcome.requests,
        outcome.seconds,
        outcome.grown
    );
}
