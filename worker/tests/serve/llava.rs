//! The protocol of LLaVA's own clients, and what is mended in it.

use serde_json::{Value, json};

use crate::worker::Worker;

const PROMPT: &str = "USER: Hi ASSISTANT:";

/// The bytes of an answer; `change` changes the body of a greedy request.
async fn wire(worker: &Worker, change: Value) -> String {
    let mut body =
        json!({"model": "tiny", "prompt": PROMPT, "temperature": 0, "max_new_tokens": 40});
    for (field, value) in change.as_object().unwrap() {
        body[field] = value.clone();
    }
    let request = worker
        .post("/worker_generate_stream")
        .body(body.to_string());
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), 200, "{body}");
    response.text().await.unwrap()
}

/// The frames of an answer.
async fn frames(worker: &Worker, change: Value) -> Vec<Value> {
    let wire = wire(worker, change).await;
    let frames = wire
        .split_terminator('\0')
        .filter(|frame| !frame.is_empty());
    frames
        .map(|frame| serde_json::from_str(frame).unwrap())
        .collect()
}

/// The text of the last frame behind the prompt.
async fn answer(worker: &Worker, change: Value) -> String {
    let frames = frames(worker, change).await;
    let last = frames.last().unwrap();
    assert_eq!(last["error_code"], 0, "{last}");
    last["text"]
        .as_str()
        .unwrap()
        .strip_prefix(PROMPT)
        .unwrap()
        .to_owned()
}

#[tokio::test]
async fn frames_are_byte_for_byte_what_llavas_clients_read() {
    let worker = Worker::start(&[]).await;
    let body = json!({"prompt": PROMPT, "temperature": 0, "max_tokens": 2});
    let request = worker.post("/v1/completions").body(body.to_string());
    let answer: Value = request.send().await.unwrap().json().await.unwrap();
    let letters: Vec<char> = answer["choices"][0]["text"]
        .as_str()
        .unwrap()
        .chars()
        .collect();
    let frame =
        |text: &str, code: u8| format!("{{\"text\":{},\"error_code\":{code}}}\0", json!(text));
    let said = |count: usize| PROMPT.to_owned() + &String::from_iter(&letters[..count]);
    // Everything so far with every token, and once more at the end.
    let answer = [1, 2, 2].map(|count| frame(&said(count), 0)).concat();
    let full = frame(
        "USER: Hi ASSISTANT:Exceeds max token length. Please start a new conversation, thanks.",
        0,
    );
    let refused = frame(
        "**NETWORK ERROR DUE TO HIGH TRAFFIC. PLEASE REGENERATE OR REFRESH THIS PAGE.** \
         (Number of images (1) does not match number of <image> tokens in prompt (0))",
        1,
    );
    for (change, expected) in [
        (json!({"max_new_tokens": 2}), answer),
        (json!({"max_new_tokens": 0}), full),
        (json!({"images": ["aGk="]}), refused),
    ] {
        assert_eq!(wire(&worker, change).await, expected);
    }
}

#[tokio::test]
async fn a_stop_text_ends_the_computation_too_and_an_empty_or_missing_one_is_none() {
    let worker = Worker::start(&[]).await;
    let whole = answer(&worker, json!({})).await;
    for stop in [json!(""), Value::Null] {
        assert_eq!(answer(&worker, json!({"stop": stop})).await, whole);
    }
    let letters: Vec<char> = whole.chars().collect();
    let stop: String = letters[4..6].iter().collect();
    let before = whole.split(&stop).next().unwrap();
    let finished = async || worker.metric("llava_request_finished_total", "").await;
    // The start's own proof, and the three above.
    worker
        .until("those are counted", async || finished().await == 4.0)
        .await;
    let computed = async || worker.metric("llava_generation_tokens_total", "").await;
    let earlier = computed().await;
    assert_eq!(answer(&worker, json!({"stop": stop})).await, before);
    worker
        .until("it is counted", async || finished().await == 5.0)
        .await;
    // One token a letter.
    let tokens = before.chars().count() + 2;
    assert_eq!(computed().await - earlier, tokens as f64);
    assert!(tokens < letters.len());
}

#[tokio::test]
async fn numbers_may_come_as_texts_and_what_is_no_number_is_named() {
    let worker = Worker::start(&[]).await;
    let numbers = json!({"temperature": 0.0, "top_p": 0.5, "max_new_tokens": 7});
    let texts = json!({"temperature": "0.0", "top_p": "0.5", "max_new_tokens": " 7 "});
    let expected = answer(&worker, numbers).await;
    assert_eq!(expected.chars().count(), 7);
    assert_eq!(answer(&worker, texts).await, expected);
    let mut asked = 0;
    for field in ["temperature", "top_p", "max_new_tokens"] {
        for value in [json!("many"), json!("nan"), json!([1])] {
            let refused = frames(&worker, json!({field: value})).await;
            assert_eq!(refused.len(), 1);
            assert_eq!(refused[0]["error_code"], 1);
            asked += 1;
            let text = refused[0]["text"].as_str().unwrap();
            assert!(
                text.contains(&format!("`{field}` is not a number")),
                "{text}"
            );
        }
    }
    // They answer 200, as LLaVA does, and are refusals all the same.
    let counted = worker
        .metric("llava_worker_refusals_total", "invalid_value")
        .await;
    assert_eq!(counted, f64::from(asked));
}
