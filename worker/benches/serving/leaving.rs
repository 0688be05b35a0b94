//! How soon the slots of callers that leave are free again.

use std::time::{Duration, Instant};

use serde_json::json;
use shell::clock;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream};

use crate::streams::{median, millis};
use crate::table::Table;
use crate::worker::{Worker, ask};

const TRIALS: usize = 20;
const BOUND: Duration = Duration::from_millis(200);

pub(crate) async fn measure(table: &mut Table) {
    let worker = Worker::start_demo(&[]).await;
    let mut waits = Vec::new();
    for trial in 0..TRIALS {
        let mut body = ask(&format!("{trial}"), 900);
        body["stream"] = json!(true);
        let mut response = worker.chat(&body).await;
        response.chunk().await.unwrap();
        drop(response);
        waits.push(freed(&worker, clock::now()).await);
    }
    report(table, "a caller that reads leaves", waits);
    let mut waits = Vec::new();
    for trial in 0..TRIALS / 2 {
        let socket = fill_a_socket(&worker, trial).await;
        drop(socket);
        waits.push(freed(&worker, clock::now()).await);
    }
    let ended = worker
        .metric("llava_request_finished_total", "finished_reason=\"abort\"")
        .await;
    assert_eq!(
        ended as usize,
        TRIALS + 8 * (TRIALS / 2),
        "somebody ended by itself before it was left"
    );
    report(table, "a caller behind a full socket leaves", waits);
}

fn report(table: &mut Table, what: &str, waits: Vec<Duration>) {
    let worst = *waits.iter().max().unwrap();
    table.check(
        &format!("{what}: until its slot is free"),
        format!("median {}, worst {}", millis(median(waits)), millis(worst)),
        "≤ 200 ms",
        worst <= BOUND,
    );
}

async fn freed(worker: &Worker, left: Instant) -> Duration {
    while worker.load().await.queue_length() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    clock::now() - left
}

/// A connection whose answers nobody reads, when more has been generated than
/// the system's buffers take.
async fn fill_a_socket(worker: &Worker, trial: usize) -> TcpStream {
    let tokens = async || worker.metric("llava_generation_tokens_total", "").await;
    let before = tokens().await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(worker.api).await.unwrap();
    let mut body = ask(&format!("x {trial}"), 900);
    body["stream"] = json!(true);
    body["n"] = json!(8);
    body["logprobs"] = json!(true);
    body["top_logprobs"] = json!(20);
    let body = body.to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
    // Some 2.5 KB a token.
    while tokens().await - before < 2500.0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    stream
}
