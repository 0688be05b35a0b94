//! The protocol of LLaVA's own clients, and what is mended in it.

use serde_json::{Value, json};

use crate::worker::Worker;

const PROMPT: &str = "USER: Hi ASSISTANT:";

/// The frames of an answer; `change` changes the body of a greedy request.
async fn frames(worker: &Worker, change: Value) -> Vec<Value> {
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
    let wire = response.text().await.unwrap();
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
    for field in ["temperature", "top_p", "max_new_tokens"] {
        for value in [json!("many"), json!("nan"), json!([1])] {
            let refused = frames(&worker, json!({field: value})).await;
            assert_eq!(refused.len(), 1);
            assert_eq!(refused[0]["error_code"], 1);
            let text = refused[0]["text"].as_str().unwrap();
            assert!(
                text.contains(&format!("`{field}` is not a number")),
                "{text}"
            );
        }
    }
}
