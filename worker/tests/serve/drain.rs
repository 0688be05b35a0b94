//! The end of a worker, asked for or not.

use std::process::Command;

use serde_json::{Value, json};

use crate::worker::{Worker, ask};

const ONE_SLOT: [&str; 2] = ["--max-running-requests", "1"];

/// On one slot its answers come one after the other, and outlast what is done meanwhile.
fn long() -> Value {
    let mut body = ask("go on", 1500);
    body["stream"] = json!(true);
    body["n"] = json!(8);
    body
}

#[tokio::test]
async fn on_sigterm_streams_finish_and_new_work_is_refused() {
    let mut worker = Worker::start(&[&ONE_SLOT[..], &["--drain-timeout", "60"]].concat()).await;
    let mut stream = worker.chat(&long()).await;
    stream.chunk().await.unwrap();
    worker.terminate();
    worker
        .until("unready", async || !worker.ready().await)
        .await;
    let refused = worker.chat(&ask("x", 1)).await;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    assert!(
        refused.headers()["x-llava-load"]
            .to_str()
            .unwrap()
            .contains("draining")
    );
    let rest = stream.bytes().await.unwrap();
    assert!(rest.ends_with(b"data: [DONE]\n\n"));
    assert!(worker.ended().await.success());
}

#[tokio::test]
async fn when_the_grace_is_over_a_stream_ends_with_one_error_event() {
    let mut worker = Worker::start(&[&ONE_SLOT[..], &["--drain-timeout", "0"]].concat()).await;
    let mut stream = worker.chat(&long()).await;
    stream.chunk().await.unwrap();
    worker.terminate();
    let rest = String::from_utf8(stream.bytes().await.unwrap().to_vec()).unwrap();
    let last = rest
        .trim_end()
        .lines()
        .last()
        .unwrap()
        .strip_prefix("data: ")
        .unwrap();
    let error: Value = serde_json::from_str(last).unwrap();
    assert_eq!(error["error"]["type"], "stream_error");
    assert_eq!(error["error"]["code"], "draining");
    assert_eq!(rest.matches("\"error\"").count(), 1);
    assert!(worker.ended().await.success());
}

#[tokio::test]
async fn a_wedged_engine_ends_the_process_with_the_cause_in_the_termination_log() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("termination");
    // No step is that fast: the first that is looked at counts as stuck.
    let flags = [
        "--step-timeout",
        "0",
        "--termination-log",
        log.to_str().unwrap(),
    ];
    let mut worker = Worker::start(&flags).await;
    // One stream may pass between two looks; some step is looked at before long.
    let body = long().to_string();
    let ask = || worker.post("/v1/chat/completions").body(body.clone());
    while let Ok(mut stream) = ask().send().await {
        while let Ok(Some(_)) = stream.chunk().await {}
    }
    assert!(!worker.ended().await.success());
    let cause = std::fs::read_to_string(log).unwrap();
    assert!(cause.contains("stuck in one step"), "{cause}");
}

#[test]
fn a_model_that_cannot_be_loaded_is_named_in_the_termination_log() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("termination");
    let status = Command::new(env!("CARGO_BIN_EXE_llava-worker"))
        .args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--admin-listen",
            "127.0.0.1:0",
            "--model",
        ])
        .arg(dir.path())
        .arg("--termination-log")
        .arg(&log)
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(!status.success());
    let cause = std::fs::read_to_string(log).unwrap();
    assert!(cause.contains("config.json"), "{cause}");
}
