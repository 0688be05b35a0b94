//! Answers: the bytes of streams, and that company changes nothing.

use protocol::sse;
use serde_json::{Value, json};

use crate::worker::{Worker, ask, ask_about, base64, data_uri, png, text};

async fn stream(worker: &Worker, mut body: Value) -> String {
    body["stream"] = json!(true);
    let response = worker.chat(&body).await;
    assert!(response.status().is_success());
    String::from_utf8(response.bytes().await.unwrap().to_vec()).unwrap()
}

fn text_of(wire: &str) -> String {
    let mut decoder = sse::Decoder::default();
    let events = decoder.push(wire.as_bytes());
    assert_eq!(events.last().map(String::as_str), Some(sse::DONE));
    events[..events.len() - 1]
        .iter()
        .map(|event| serde_json::from_str::<Value>(event).unwrap())
        .filter_map(|event| {
            event["choices"][0]["delta"]["content"]
                .as_str()
                .map(str::to_owned)
        })
        .collect()
}

/// What differs from run to run, made equal.
fn settled(wire: &str) -> String {
    let event: Value =
        serde_json::from_str(wire.lines().next().unwrap().strip_prefix("data: ").unwrap()).unwrap();
    wire.replace(event["id"].as_str().unwrap(), "ID")
        .replace(&event["created"].to_string(), "0")
}

#[tokio::test]
async fn a_stream_is_byte_for_byte_what_the_sdks_read() {
    let worker = Worker::start(&[]).await;
    let whole = text(worker.chat(&ask("Hi", 2)).await).await;
    let letters: Vec<char> = whole.chars().collect();
    let mut body = ask("Hi", 2);
    body["stream_options"] = json!({"include_usage": true});
    let wire = settled(&stream(&worker, body).await);
    let chunk = |choices: &str, usage: &str| {
        format!(
            "data: {{\"id\":\"ID\",\"object\":\"chat.completion.chunk\",\"created\":0,\"model\":\"tiny\",\"choices\":[{choices}],\"usage\":{usage}}}\n\n"
        )
    };
    let choice = |delta: &str, finish: &str| {
        format!("{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{finish}}}")
    };
    let content = |letter: char| format!("{{\"content\":{}}}", json!(letter.to_string()));
    let prompt: u64 = wire
        .split("\"prompt_tokens\":")
        .nth(1)
        .unwrap()
        .split(',')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let usage = format!(
        "{{\"prompt_tokens\":{prompt},\"completion_tokens\":2,\"total_tokens\":{},\"prompt_tokens_details\":{{\"cached_tokens\":{}}},\"completion_tokens_details\":{{\"reasoning_tokens\":0}}}}",
        prompt + 2,
        prompt - 1
    );
    let expected = [
        chunk(
            &choice("{\"role\":\"assistant\",\"content\":\"\"}", "null"),
            "null",
        ),
        chunk(&choice(&content(letters[0]), "null"), "null"),
        chunk(&choice(&content(letters[1]), "null"), "null"),
        chunk(&choice("{}", "\"length\""), "null"),
        chunk("", &usage),
        "data: [DONE]\n\n".to_owned(),
    ];
    assert_eq!(wire, expected.concat());
}

#[tokio::test]
async fn no_proxy_holds_a_stream_back_and_comments_fill_its_pauses() {
    let worker = Worker::start(&["--keep-alive", "0.001", "--prefill-chunk", "8"]).await;
    // Nothing comes while so long a prompt is computed.
    let mut body = ask(&"x".repeat(1500), 3);
    body["stream"] = json!(true);
    let response = worker.chat(&body).await;
    let headers = response.headers().clone();
    assert_eq!(headers["content-type"], sse::CONTENT_TYPE);
    assert_eq!(headers["cache-control"], "no-cache");
    assert_eq!(headers["x-accel-buffering"], "no");
    let wire = response.text().await.unwrap();
    let (opening, rest) = wire.split_once(": keep-alive\n\n").unwrap();
    assert!(opening.ends_with("\n\n"), "{opening}");
    assert!(opening.contains("assistant"), "{opening}");
    assert!(rest.ends_with("data: [DONE]\n\n"), "{rest}");
    body["stream"] = json!(false);
    assert_eq!(text_of(&wire), text(worker.chat(&body).await).await);
}

#[tokio::test]
async fn a_completion_streams_byte_for_byte_what_the_sdks_read() {
    let worker = Worker::start(&[]).await;
    let body = json!({
        "prompt": "Hi", "max_tokens": 2, "temperature": 0, "echo": true, "stream": true,
        "logit_bias": {"2": -100},
    });
    let request = worker.post("/v1/completions").body(body.to_string());
    let wire = request.send().await.unwrap().text().await.unwrap();
    let mut whole = body;
    whole["stream"] = json!(false);
    let request = worker.post("/v1/completions").body(whole.to_string());
    let answer = request.send().await.unwrap().bytes().await.unwrap();
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    let text = answer["choices"][0]["text"].as_str().unwrap();
    let letters: Vec<char> = text.strip_prefix("Hi").unwrap().chars().collect();
    let chunk = |text: &str, finish: &str| {
        format!(
            "data: {{\"id\":\"ID\",\"object\":\"text_completion\",\"created\":0,\"model\":\"tiny\",\"choices\":[{{\"text\":{},\"index\":0,\"logprobs\":null,\"finish_reason\":{finish}}}]}}\n\n",
            json!(text)
        )
    };
    let expected = [
        chunk("Hi", "null"),
        chunk(&letters[0].to_string(), "null"),
        chunk(&letters[1].to_string(), "null"),
        chunk("", "\"length\""),
        "data: [DONE]\n\n".to_owned(),
    ];
    assert_eq!(settled(&wire), expected.concat());
}

#[tokio::test]
async fn llavas_clients_get_frames_with_the_prompt_and_all_text_so_far() {
    let worker = Worker::start(&[]).await;
    let body = json!({
        "model": "tiny", "prompt": "USER: <image>\nHi ASSISTANT:", "images": [base64(&png(7))],
        "temperature": 0.0, "max_new_tokens": 3, "stop": "</s>",
    });
    let response = worker
        .post("/worker_generate_stream")
        .body(body.to_string())
        .send()
        .await
        .unwrap();
    let wire = String::from_utf8(response.bytes().await.unwrap().to_vec()).unwrap();
    let frames: Vec<Value> = wire
        .split_terminator('\0')
        .map(|frame| serde_json::from_str(frame).unwrap())
        .collect();
    let mut before = "USER: <image>\nHi ASSISTANT:".to_owned();
    for frame in &frames {
        assert_eq!(frame["error_code"], 0);
        let text = frame["text"].as_str().unwrap();
        assert!(text.starts_with(&before));
        before = text.to_owned();
    }
    worker.at_rest().await;
    let status = worker
        .post("/worker_get_status")
        .send()
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap();
    assert_eq!(
        status,
        r#"{"model_names":["tiny","other"],"speed":1,"queue_length":0}"#
    );
    let missing = json!({"prompt": "<image>", "max_new_tokens": 3});
    let response = worker
        .post("/worker_generate_stream")
        .body(missing.to_string())
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    let wire = response.bytes().await.unwrap();
    let frame: Value = serde_json::from_slice(&wire[..wire.len() - 1]).unwrap();
    assert_eq!(frame["error_code"], 1);
    assert!(
        frame["text"].as_str().unwrap().contains("1 image slots"),
        "{frame}"
    );
}

#[tokio::test]
async fn sixty_four_streams_of_the_demo_checkpoint_equal_their_lone_answers() {
    let worker = Worker::start_demo(&["--max-queue-length", "64", "--prefill-chunk", "32"]).await;
    let bodies: Vec<Value> = (0..64u8)
        .map(|n| {
            let question = "What is in the image? ".repeat(usize::from(n % 7) * 3 + 1);
            if n % 3 == 0 {
                ask_about(n / 9 * 30, &question, 20)
            } else {
                ask(&question, 5 + u64::from(n))
            }
        })
        .collect();
    let together =
        futures::future::join_all(bodies.iter().map(|body| stream(&worker, body.clone()))).await;
    worker.at_rest().await;
    let alone = ["--max-running-requests", "1", "--image-cache", "0"];
    let fresh = Worker::start_demo(&alone).await;
    for (body, wire) in bodies.iter().zip(&together) {
        assert_eq!(text_of(wire), text(fresh.chat(body).await).await);
    }
}

#[tokio::test]
async fn several_answers_stop_texts_and_probabilities_come_as_asked() {
    let worker = Worker::start(&[]).await;
    let whole = text(worker.chat(&ask("Tell me", 12)).await).await;
    let stop: String = whole.chars().skip(4).take(2).collect();
    let mut body = ask("Tell me", 12);
    body["stop"] = json!(stop);
    let cut = text(worker.chat(&body).await).await;
    assert_eq!(cut, whole.split(&stop).next().unwrap());
    assert_eq!(text_of(&stream(&worker, body).await), cut);
    let mut body = ask_about(3, "x", 4);
    body["n"] = json!(3);
    body["logprobs"] = json!(true);
    body["top_logprobs"] = json!(2);
    let response = worker.chat(&body).await;
    let answer: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    let choices = answer["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    for choice in choices {
        assert_eq!(choice["message"], choices[0]["message"]);
        let tokens = choice["logprobs"]["content"].as_array().unwrap();
        assert_eq!(tokens.len(), 4);
        assert_eq!(tokens[0]["top_logprobs"][0]["token"], tokens[0]["token"]);
    }
    assert_eq!(answer["usage"]["completion_tokens"], 12);
}

#[tokio::test]
async fn images_stand_where_they_are_shown_and_matter() {
    let worker = Worker::start(&[]).await;
    let image = |colour: u8| json!({"type": "image_url", "image_url": data_uri(colour)});
    let words = |text: &str| json!({"type": "text", "text": text});
    let mut answers = Vec::new();
    for parts in [
        json!([image(0), words("a"), image(200)]),
        json!([image(200), words("a"), image(0)]),
        json!([words("a"), image(0)]),
    ] {
        let mut body = ask("", 24);
        body["messages"][0]["content"] = parts;
        answers.push(text(worker.chat(&body).await).await);
    }
    answers.dedup();
    assert_eq!(answers.len(), 3);
}
