//! Many short requests of every kind at once: good ones, callers that leave at
//! any moment, broken images and broken JSON.

use std::time::Duration;

use futures::StreamExt;
use serde_json::{Value, json};
use shell::clock;

use crate::worker::{Worker, ask, ask_about, base64, data_uri, text};

/// Requests under way at once.
const AT_ONCE: usize = 48;
/// Good requests that differ.
const QUESTIONS: usize = 24;
const TOKENS: u64 = 8;

/// What came of them.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) requests: usize,
    pub(crate) seconds: f64,
    /// Answers that were neither right nor a clear 4xx.
    pub(crate) wrong: Vec<String>,
    /// Bytes that the process holds at the end beyond those after the first fifth.
    pub(crate) grown: isize,
    /// Requests that the worker still believes in at the end.
    pub(crate) held: u32,
}

/// Sends `requests` of them.
pub(crate) async fn run(worker: &Worker, requests: usize) -> Outcome {
    let mut answers = Vec::new();
    for n in 0..QUESTIONS {
        answers.push(text(worker.chat(&question(n)).await).await);
    }
    let began = clock::now();
    let first = requests / 5;
    let mut wrong = send(worker, &answers, 0..first).await;
    let before = worker.memory();
    wrong.extend(send(worker, &answers, first..requests).await);
    let seconds = (clock::now() - began).as_secs_f64();
    // Whoever left is gone within a step; nothing else is under way.
    worker.at_rest().await;
    Outcome {
        requests,
        seconds,
        wrong,
        grown: worker.memory().cast_signed() - before.cast_signed(),
        held: worker.load().await.queue_length(),
    }
}

async fn send(worker: &Worker, answers: &[String], numbers: std::ops::Range<usize>) -> Vec<String> {
    futures::stream::iter(numbers.map(|n| one(worker, answers, n)))
        .buffer_unordered(AT_ONCE)
        .filter_map(async |problem| problem)
        .collect()
        .await
}

/// A question about nothing or about one of a few pictures.
fn question(n: usize) -> Value {
    match n % 4 {
        3 => ask_about((n * 10) as u8, "What is it?", TOKENS),
        _ => ask(&format!("How many shapes are {n}?"), TOKENS),
    }
}

/// One request; says what is wrong with its answer.
async fn one(worker: &Worker, answers: &[String], n: usize) -> Option<String> {
    // Knuth's multiplicative hash: every kind comes at every time, in the same order each run.
    let draw = (n as u32).wrapping_mul(2_654_435_761) >> 8;
    let which = draw as usize % QUESTIONS;
    match n % 10 {
        0..=4 => {
            let answer = text(worker.chat(&question(which)).await).await;
            (answer != answers[which])
                .then(|| format!("{:?} instead of {:?}", answer, answers[which]))
        }
        5 => {
            let mut body = question(which);
            body["stream"] = json!(true);
            body["max_tokens"] = json!(500);
            // Leaves after the first bytes.
            worker.chat(&body).await.chunk().await.unwrap();
            None
        }
        6 => {
            let mut body = question(which);
            body["max_tokens"] = json!(500);
            let patience = Duration::from_micros(u64::from(draw % 30_000));
            // Leaves whatever has come by then, most often nothing.
            let _ = tokio::time::timeout(patience, worker.chat(&body)).await;
            None
        }
        7 => {
            let whole = data_uri((n % 256) as u8);
            let cut = &whole[..whole.len() * 2 / 3 / 4 * 4 + 2];
            refused(worker, &picture(cut).to_string(), "image_damaged").await
        }
        8 => {
            let uri = format!("data:image/png;base64,{}", base64(&n.to_le_bytes()));
            refused(
                worker,
                &picture(&uri).to_string(),
                "image_format_unsupported",
            )
            .await
        }
        _ => {
            let body = question(which).to_string();
            refused(worker, &body[..draw as usize % body.len()], "invalid_json").await
        }
    }
}

fn picture(uri: &str) -> Value {
    let part = json!({"type": "image_url", "image_url": {"url": uri}});
    json!({"messages": [{"role": "user", "content": [part]}]})
}

async fn refused(worker: &Worker, body: &str, code: &str) -> Option<String> {
    let request = worker.post("/v1/chat/completions").body(body.to_owned());
    let response = request.send().await.unwrap();
    let status = response.status();
    let answer: Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
    (status != 400 || answer["error"]["code"] != code).then(|| format!("{status} {answer}"))
}
