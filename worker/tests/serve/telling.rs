//! What a worker tells of its work: every figure that the documentation names, moved by what
//! happened, and in no log a word of what users write.

use std::collections::BTreeSet;

use futures::StreamExt;
use serde_json::{Value, json};
use shell::clock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::worker::{Worker, ask, ask_about, data_uri};

const PAGE: &str = include_str!("../../../docs/reference/worker-metrics.md");

/// The kinds and names that `/metrics` declares.
fn declared(metrics: &str) -> BTreeSet<(String, String)> {
    let types = metrics.lines().filter_map(|line| {
        let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        Some((name.to_owned(), kind.to_owned()))
    });
    types.collect()
}

/// The kinds and names in the page's tables.
fn documented() -> BTreeSet<(String, String)> {
    let rows = PAGE.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split('|');
        let name = cells.next()?.trim().trim_end_matches('`');
        Some((name.to_owned(), cells.next()?.trim().to_owned()))
    });
    rows.collect()
}

/// A worker whose figures hold the request with which it proved itself, and nothing else.
async fn started() -> Worker {
    let worker = Worker::start(&[]).await;
    let counted = async || worker.metric("llava_request_finished_total", "").await == 1.0;
    worker.until("the start's own is counted", counted).await;
    worker
}

#[tokio::test]
async fn the_page_of_metrics_names_exactly_those_that_there_are() {
    let worker = started().await;
    // Figures with labels are there once they have counted something.
    for body in [ask("hello", 2), json!({})] {
        worker.chat(&body).await.bytes().await.unwrap();
    }
    assert_eq!(declared(&Figures::read(&worker).await.0), documented());
}

#[tokio::test]
async fn every_figure_moves_with_what_happened() {
    let worker = started().await;
    let before = Figures::read(&worker).await;
    let (mut prompt, mut answered) = (0, 0);
    for body in [
        ask("How many shapes are there?", 9),
        ask_about(40, "What is it?", 7),
        ask_about(40, "What is it?", 7),
    ] {
        let whole: Value = worker.chat(&body).await.json().await.unwrap();
        prompt += whole["usage"]["prompt_tokens"].as_u64().unwrap();
        answered += whole["usage"]["completion_tokens"].as_u64().unwrap();
    }
    // An answer is out before its end is counted.
    let of_each = [
        "llava_request_preparation_time_seconds_count",
        "llava_request_queue_time_seconds_count",
        "llava_time_to_first_token_seconds_count",
        "llava_request_prefill_time_seconds_count",
        "llava_request_decode_time_seconds_count",
        "llava_e2e_request_latency_seconds_count",
        "llava_request_finished_total{finished_reason=\"length\"}",
        "llava_worker_requests_total{path=\"/v1/chat/completions\",status=\"200\"}",
    ];
    let at_rest = [
        "llava_num_requests_running",
        "llava_num_requests_waiting",
        "llava_kv_cache_usage",
    ];
    let settled = async || {
        let now = Figures::read(&worker).await;
        let counted = |name: &&str| now.of(name) - before.of(name) >= 3.0;
        of_each.iter().all(counted) && at_rest.iter().all(|name| now.of(name) == 0.0)
    };
    worker.until("all three are counted", settled).await;
    let after = Figures::read(&worker).await;
    let moved = |name: &str| after.of(name) - before.of(name);
    for name in of_each {
        assert_eq!(moved(name), 3.0, "{name}");
    }
    assert_eq!(moved("llava_prompt_tokens_total"), prompt as f64);
    assert_eq!(moved("llava_generation_tokens_total"), answered as f64);
    assert_eq!(moved("llava_image_cache_queries_total"), 2.0);
    assert_eq!(moved("llava_image_cache_hits_total"), 1.0);
    assert_eq!(moved("llava_images_encoded_total"), 1.0);
    assert_eq!(moved("llava_num_preemptions_total"), 0.0);
    assert!(moved("llava_prefix_cache_hit_tokens_total") > 0.0);
    // The first token of an answer is between no two.
    let between = (answered - 3) as f64;
    assert_eq!(moved("llava_inter_token_latency_seconds_count"), between);
    let (whole, model) = (
        "llava_engine_step_seconds_total",
        "llava_engine_model_seconds_total",
    );
    assert!(moved(model) > 0.0 && moved(whole) >= moved(model));
    assert!(moved("llava_engine_steps_total") >= 9.0);
    let unknown = json!({"model": "nobody", "messages": [{"role": "user", "content": "?"}]});
    assert_eq!(worker.chat(&unknown).await.status(), 404);
    let refused = "llava_worker_refusals_total{code=\"model_not_found\"}";
    assert_eq!(Figures::read(&worker).await.of(refused), 1.0);
}

#[tokio::test]
async fn a_caller_that_leaves_is_counted_as_one() {
    let worker = Worker::start(&[]).await;
    let mut body = ask("Tell me everything.", 4000);
    body["stream"] = json!(true);
    let mut stream = worker.chat(&body).await.bytes_stream();
    stream.next().await.unwrap().unwrap();
    assert_eq!(worker.metric("llava_num_requests_running", "").await, 1.0);
    assert!(worker.metric("llava_kv_cache_usage", "").await > 0.0);
    drop(stream);
    worker.at_rest().await;
    let counted = async || worker.metric("llava_request_finished_total", "abort").await == 1.0;
    worker.until("the abort is counted", counted).await;
}

#[tokio::test]
async fn what_a_caller_waits_for_counts_from_the_head_of_its_request() {
    let worker = started().await;
    let before = Figures::read(&worker).await;
    let body = ask("hello", 2).to_string();
    let mut stream = TcpStream::connect(worker.api).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let here = async || worker.load().await.waiting == 1;
    worker.until("its head is here", here).await;
    let came = clock::now();
    // Something takes time before the body is sent.
    for _ in 0..50 {
        worker.load().await;
    }
    let late = (clock::now() - came).as_secs_f64();
    stream.write_all(body.as_bytes()).await.unwrap();
    stream.read_to_end(&mut Vec::new()).await.unwrap();
    let counted = async || worker.metric("llava_request_finished_total", "").await == 2.0;
    worker.until("it is counted", counted).await;
    let after = Figures::read(&worker).await;
    let spent = |name: &str| {
        let name = format!("llava_{name}_seconds_sum");
        after.of(&name) - before.of(&name)
    };
    let first = spent("time_to_first_token");
    for (name, time) in [
        ("preparation", spent("request_preparation_time")),
        ("first token", first),
        ("whole answer", spent("e2e_request_latency")),
    ] {
        assert!(
            time >= late,
            "{name}: {time} s, {late} of them for the body"
        );
    }
    let queued = spent("request_queue_time");
    assert!(queued <= first - late, "a body is no queue: {queued} s");
}

/// One answer of `/metrics`.
struct Figures(String);

impl Figures {
    async fn read(worker: &Worker) -> Self {
        let answer = worker.admin("/metrics").await.unwrap();
        Self(answer.text().await.unwrap())
    }

    /// A sample by its name with labels; 0 where there is none yet.
    fn of(&self, name: &str) -> f64 {
        let line = (self.0.lines()).find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |value| value.parse().unwrap())
    }
}

#[tokio::test]
async fn nothing_that_users_write_is_logged_whatever_is_logged() {
    const SECRET: &str = "xyzzyplugh";
    let filter = "trace,h2=info,mio=info";
    let worker = Worker::start(&["--log-filter", filter, "--max-prompt-characters", "2000"]).await;
    let chat = |content: Value| json!({"messages": [{"role": "user", "content": content}], "max_tokens": 4});
    let with = |key: &str, value: Value| {
        let mut body = chat(json!("hello"));
        body[key] = value;
        body
    };
    let image = |url: String| chat(json!([{"type": "image_url", "image_url": {"url": url}}]));
    let bodies = [
        chat(json!(SECRET)),
        chat(json!(SECRET.repeat(300))),
        chat(json!([{"type": SECRET, "text": SECRET}])),
        chat(json!({SECRET: SECRET})),
        with("user", json!(SECRET)),
        with("model", json!(SECRET)),
        with("stop", json!([SECRET])),
        with("temperature", json!(SECRET)),
        with(
            "tools",
            json!([{"type": "function", "function": {"name": SECRET}}]),
        ),
        with("logit_bias", json!({SECRET: 1})),
        with(SECRET, json!(SECRET)),
        image(format!("https://{SECRET}.example/{SECRET}.png")),
        image(format!("data:image/png;base64,{SECRET}")),
        image(format!("{}{SECRET}", data_uri(9))),
        image(data_uri(9)),
    ];
    let mut texts: Vec<String> = bodies.iter().map(Value::to_string).collect();
    texts.push(format!("{{\"messages\": {SECRET}"));
    for body in &texts {
        let answer = worker.post("/v1/chat/completions").body(body.clone());
        let answer = answer.send().await.unwrap();
        assert!(!answer.status().is_server_error(), "{body}");
        answer.bytes().await.unwrap();
    }
    for (path, body) in [
        (
            "/v1/completions",
            json!({"prompt": SECRET, "max_tokens": 4}),
        ),
        (
            "/worker_generate_stream",
            json!({"model": "tiny", "prompt": SECRET, "max_new_tokens": 4}),
        ),
        ("/tokenize", json!({"prompt": SECRET})),
    ] {
        let answer = worker
            .post(path)
            .body(body.to_string())
            .send()
            .await
            .unwrap();
        answer.bytes().await.unwrap();
    }
    worker.get(&format!("/{SECRET}?{SECRET}={SECRET}")).await;
    worker.at_rest().await;
    let log = worker.log();
    assert!(log.len() > texts.len(), "the log says little: {log:?}");
    for entry in log {
        assert!(!entry.to_string().contains(SECRET), "{entry}");
    }
}
