//! Streams, as a client sees them.

use std::time::{Duration, Instant};

use protocol::sse;
use serde_json::{Value, json};
use shell::clock;

use crate::worker::Worker;

/// When the pieces of one answer came.
#[derive(Debug)]
pub(crate) struct Seen {
    asked: Instant,
    /// One instant for each chunk with text.
    pub(crate) pieces: Vec<Instant>,
}

impl Seen {
    /// From the request to the first text.
    pub(crate) fn first(&self) -> Duration {
        *self.pieces.first().expect("an answer has text") - self.asked
    }

    /// The pauses between pieces.
    pub(crate) fn pauses(&self) -> Vec<Duration> {
        let pauses = self.pieces.windows(2).map(|pair| pair[1] - pair[0]);
        pauses.collect()
    }
}

/// Asks for a stream and reads it to its end.
pub(crate) async fn read(worker: &Worker, mut body: Value) -> Seen {
    body["stream"] = json!(true);
    let asked = clock::now();
    let mut response = worker.chat(&body).await;
    assert!(
        response.status().is_success(),
        "{}",
        response.text().await.unwrap()
    );
    let mut pieces = Vec::new();
    let mut decoder = sse::Decoder::default();
    while let Some(bytes) = response.chunk().await.unwrap() {
        let now = clock::now();
        for event in decoder.push(&bytes) {
            if event == sse::DONE {
                continue;
            }
            let event: Value = serde_json::from_str(&event).unwrap();
            let text = event["choices"][0]["delta"]["content"].as_str();
            if text.is_some_and(|text| !text.is_empty()) {
                pieces.push(now);
            }
        }
    }
    Seen { asked, pieces }
}

/// The middle one.
pub(crate) fn median<T: PartialOrd + Copy>(mut values: Vec<T>) -> T {
    values.sort_by(|a, b| a.partial_cmp(b).unwrap());
    values[values.len() / 2]
}

/// Milliseconds for a table.
pub(crate) fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}
