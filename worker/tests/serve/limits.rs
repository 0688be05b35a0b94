//! Each limit has a flag, and an error of its own.

use serde_json::{Value, json};

use crate::worker::{Worker, ask, ask_about, base64};

/// A picture of so many pixels on a side.
fn square(side: u32, sixteen_bits: bool) -> Value {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let picture = match sixteen_bits {
        true => image::DynamicImage::new_rgba16(side, side),
        false => image::DynamicImage::new_rgb8(side, side),
    };
    picture
        .write_to(&mut bytes, image::ImageFormat::Png)
        .unwrap();
    let url = format!("data:image/png;base64,{}", base64(&bytes.into_inner()));
    let mut body = ask("", 1);
    body["messages"][0]["content"] = json!([{"type": "image_url", "image_url": {"url": url}}]);
    body
}

async fn refusal(worker: &Worker, body: &Value) -> (u16, String) {
    let response = worker.chat(body).await;
    let status = response.status().as_u16();
    let answer: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    let error = &answer["error"];
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|text| !text.is_empty()),
        "{answer}"
    );
    (
        status,
        error["code"].as_str().unwrap_or_default().to_owned(),
    )
}

#[tokio::test]
async fn each_limit_on_a_request_has_its_own_code_and_is_met_exactly() {
    let worker = Worker::start(&[
        "--max-image-pixels",
        "10000",
        "--image-memory",
        "60400",
        "--max-images",
        "2",
        "--max-prompt-characters",
        "316",
        "--max-body-bytes",
        "40000",
        "--max-answers",
        "3",
    ])
    .await;
    let several = |n: u64| {
        let mut body = ask("x", 1);
        body["n"] = json!(n);
        body
    };
    let pictures = |n: usize| {
        let mut body = ask_about(1, "x", 1);
        let picture = body["messages"][0]["content"][0].clone();
        body["messages"][0]["content"] = json!(vec![picture; n]);
        body
    };
    let parts = |n: usize| {
        let mut body = ask("", 1);
        body["messages"][0]["content"] = json!(vec![json!({"type": "text", "text": ""}); n]);
        body
    };
    for (what, fits, too_much, status, code) in [
        (
            "pixels",
            square(100, false),
            square(101, false),
            400,
            "image_too_large",
        ),
        (
            "decoded bytes",
            square(86, true),
            square(87, true),
            400,
            "image_memory_exceeded",
        ),
        ("images", pictures(2), pictures(3), 400, "too_many_images"),
        (
            "characters",
            ask(&"x".repeat(300), 1),
            ask(&"x".repeat(301), 1),
            400,
            "prompt_too_long",
        ),
        (
            "parts without text",
            parts(18),
            parts(19),
            400,
            "prompt_too_long",
        ),
        ("answers", several(3), several(4), 400, "invalid_value"),
    ] {
        assert_eq!(worker.chat(&fits).await.status(), 200, "{what}");
        assert_eq!(
            refusal(&worker, &too_much).await,
            (status, code.to_owned()),
            "{what}"
        );
    }
    let padded = |bytes: usize| {
        let body = ask("x", 1).to_string();
        body.clone() + &" ".repeat(bytes - body.len())
    };
    for (bytes, status) in [(40_000, 200), (40_001, 413)] {
        let request = worker.post("/v1/chat/completions").body(padded(bytes));
        assert_eq!(
            request.send().await.unwrap().status(),
            status,
            "{bytes} bytes"
        );
    }
    // The length of an answer is cut, not refused: clients ask for more than they need.
    let worker = Worker::start(&["--max-output-tokens", "7"]).await;
    let answer = worker.chat(&ask("x", 100)).await.bytes().await.unwrap();
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(answer["usage"]["completion_tokens"], 7);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn messages_count_though_they_say_nothing() {
    let worker = Worker::start(&[]).await;
    let mut many = ask("", 1);
    let message = many["messages"][0].clone();
    many["messages"] = json!(vec![message; 16_385]);
    let expected = (400, "prompt_too_long".to_owned());
    assert_eq!(refusal(&worker, &many).await, expected);
}

#[tokio::test]
async fn bodies_beyond_what_all_may_bring_are_told_to_come_back() {
    let worker = Worker::start(&["--max-buffered", "100000"]).await;
    let body = ask(&"x".repeat(100_000), 1).to_string();
    let request = worker.post("/v1/chat/completions").body(body);
    let full = request.send().await.unwrap();
    assert_eq!(full.status(), 503);
    assert_eq!(full.headers()["retry-after"], "1");
    let answer: Value = serde_json::from_slice(&full.bytes().await.unwrap()).unwrap();
    assert_eq!(answer["error"]["code"], "buffers_full");
    // What was read of it is given back, and so is what was answered.
    for _ in 0..3 {
        let answer = worker.chat(&ask(&"x".repeat(60_000), 1)).await;
        assert_eq!(answer.status(), 400, "too long for the context alone");
    }
    assert_eq!(worker.chat(&ask("x", 1)).await.status(), 200);
}

#[tokio::test]
async fn prompt_and_images_that_leave_no_room_for_an_answer_are_refused() {
    let worker = Worker::start(&["--context-length", "250"]).await;
    let too_long = ask(&"x".repeat(300), 1);
    let expected = (400, "context_length_exceeded".to_owned());
    assert_eq!(refusal(&worker, &too_long).await, expected);
    let mut images = ask_about(1, "", 1);
    let picture = images["messages"][0]["content"][0].clone();
    images["messages"][0]["content"] = json!(vec![picture; 16]);
    assert_eq!(refusal(&worker, &images).await, expected);
    // The field is that of the request.
    for prompt in [json!("x".repeat(300)), json!(vec![5; 300])] {
        let request = worker.post("/v1/completions");
        let request = request.body(json!({"prompt": prompt}).to_string());
        let refused = request.send().await.unwrap().bytes().await.unwrap();
        let refused: Value = serde_json::from_slice(&refused).unwrap();
        assert_eq!(refused["error"]["code"], expected.1);
        assert_eq!(refused["error"]["param"], "prompt");
    }
}

#[tokio::test]
async fn who_waits_too_long_in_the_queue_is_told_when_to_come_back() {
    let flags = ["--max-running-requests", "1", "--queue-timeout", "0.2"];
    let worker = Worker::start(&flags).await;
    let mut long = ask("go on", 1800);
    long["stream"] = json!(true);
    // One after the other on the only slot: they outlast any patience here.
    long["n"] = json!(8);
    let mut stream = worker.chat(&long).await;
    stream.chunk().await.unwrap();
    let late = worker.chat(&ask("x", 1)).await;
    assert_eq!(late.status(), 503);
    assert_eq!(late.headers()["retry-after"], "2");
    let answer: Value = serde_json::from_slice(&late.bytes().await.unwrap()).unwrap();
    assert_eq!(answer["error"]["code"], "queue_timeout");
}

#[tokio::test]
async fn remote_images_are_fetched_from_listed_hosts_only_and_never_from_inside() {
    let worker = Worker::start(&["--allow-image-host", "localhost"]).await;
    for (url, code) in [
        ("https://localhost/x.png", "image_url_forbidden"),
        ("https://example.com/x.png", "image_url_forbidden"),
        ("http://localhost/x.png", "image_url_forbidden"),
    ] {
        let mut body = ask("", 1);
        body["messages"][0]["content"] = json!([{"type": "image_url", "image_url": {"url": url}}]);
        assert_eq!(
            refusal(&worker, &body).await,
            (400, code.to_owned()),
            "{url}"
        );
    }
}
