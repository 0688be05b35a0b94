//! A process that starts says how far it is.

use std::io::Write;
use std::process::Command;

use serde_json::Value;

use crate::checkpoint;
use crate::worker::Worker;

const STEPS: [&str; 4] = ["fetch", "map", "load", "warm_up"];

async fn status(worker: &Worker) -> Value {
    let answer = worker.admin("/status").await.unwrap();
    serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap()
}

#[tokio::test]
async fn every_step_of_the_start_is_in_the_log_the_metrics_and_the_status() {
    let worker = Worker::start(&[]).await;
    let logged = || -> Vec<String> {
        let log = worker.log();
        let steps = log.iter().filter_map(|entry| entry["step"].as_str());
        steps.map(str::to_owned).collect()
    };
    // What is logged may be read a moment after the worker is ready.
    let all = async || logged().len() == STEPS.len();
    worker.until("every step in the log", all).await;
    assert_eq!(logged(), STEPS);
    let status = status(&worker).await;
    assert_eq!(status["load"]["phase"], "serving");
    assert_eq!(status["loaded"], 1.0);
    let steps = status["steps"].as_array().unwrap();
    let named: Vec<_> = steps
        .iter()
        .map(|step| step["step"].as_str().unwrap())
        .collect();
    assert_eq!(named, STEPS);
    assert!(
        steps
            .iter()
            .all(|step| step["seconds"].as_f64().unwrap() >= 0.0)
    );
    let metrics = worker
        .admin("/metrics")
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    for step in STEPS {
        let line = format!("llava_worker_start_phase_seconds{{phase=\"{step}\"}}");
        assert!(metrics.contains(&line), "{line}");
    }
}

#[tokio::test]
async fn a_process_that_still_loads_shows_it_and_is_not_ready() {
    let dir = checkpoint::write();
    let template = dir.path().join("tokenizer_config.json");
    let content = std::fs::read(&template).unwrap();
    std::fs::remove_file(&template).unwrap();
    // Reading it waits until somebody writes.
    assert!(
        Command::new("mkfifo")
            .arg(&template)
            .status()
            .unwrap()
            .success()
    );
    let worker = Worker::spawn(dir.path(), &["--model-name", "tiny", "--threads", "1"]);
    worker
        .until("the weights are read", async || {
            status(&worker).await["loaded"] == 1.0
        })
        .await;
    let before = status(&worker).await;
    assert_eq!(before["load"]["phase"], "loading");
    assert_eq!(
        before["steps"].as_array().unwrap().len(),
        2,
        "fetch and map: {before}"
    );
    assert!(!worker.ready().await);
    assert!(worker.admin("/livez").await.unwrap().status().is_success());
    std::fs::File::options()
        .write(true)
        .open(&template)
        .unwrap()
        .write_all(&content)
        .unwrap();
    worker.until("ready", async || worker.ready().await).await;
}
