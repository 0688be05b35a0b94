//! Callers that leave behind a full socket, or stay and read nothing, and those that send slowly. That a
//! slot is free within one step is a test of the library, `serve/leaving.rs`.

use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpSocket;

use crate::worker::{Worker, ask};

#[tokio::test]
async fn a_caller_behind_a_full_socket_frees_its_slot_whether_it_goes_or_stays() {
    let worker = Worker::start(&[
        "--max-running-requests",
        "1",
        "--write-stall-timeout",
        "0.5",
    ])
    .await;
    for goes in [true, false] {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(worker.api).await.unwrap();
        let mut body = ask("go on", 1800);
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
        worker
            .until("it runs", async || worker.load().await.running > 0)
            .await;
        if goes {
            drop(stream);
            worker.at_rest().await;
        } else {
            // It stays and reads nothing: its patience is over, not ours.
            worker.at_rest().await;
            drop(stream);
        }
    }
}

#[tokio::test]
async fn a_slow_head_and_a_slow_body_are_cut_off() {
    let worker = Worker::start(&["--header-timeout", "0.3", "--body-stall-timeout", "0.3"]).await;
    for bytes in [
        "POST /v1/chat/completions HTTP/1.1\r\nhost:",
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{",
    ] {
        let mut stream = tokio::net::TcpStream::connect(worker.api).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer);
        tokio::time::timeout(Duration::from_secs(20), read)
            .await
            .unwrap()
            .unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 408"),
            "{answer}"
        );
    }
    worker.at_rest().await;
}
