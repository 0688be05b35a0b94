//! Models, keys, the page and the admin port.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::support::client::{ask, chat, request};
use crate::support::router::metric;
use crate::support::{FakeWorker, eventually, router};

#[tokio::test]
async fn models_are_listed_and_found() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).start().await;
    let list = ask(router.address, request("GET", "/v1/models", ""))
        .await
        .json();
    assert_eq!(list["object"], "list");
    assert_eq!(list["data"][0]["id"], "m");
    assert_eq!(list["data"][0]["object"], "model");
    let one = ask(router.address, request("GET", "/v1/models/m", ""))
        .await
        .json();
    assert_eq!(one["id"], "m");
    let none = ask(router.address, request("GET", "/v1/models/org%2Fother", "")).await;
    assert_eq!(
        (none.status.as_u16(), none.code().as_str()),
        (404, "model_not_found")
    );
    assert!(none.text().contains("org/other"));
}

#[tokio::test]
async fn with_keys_nothing_but_the_page_is_open() {
    let worker = FakeWorker::start().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), key_line("alice", "secret")).unwrap();
    let flag = format!("--api-keys={}", file.path().display());
    let router = router(&[&worker]).with(&flag).start().await;
    for path in ["/v1/models", "/nothing"] {
        let reply = ask(router.address, request("GET", path, "")).await;
        assert_eq!(
            (reply.status.as_u16(), reply.code().as_str()),
            (401, "invalid_api_key")
        );
    }
    assert_eq!(
        ask(router.address, request("GET", "/", "")).await.status,
        200
    );
    let mut with_key = chat(&json!({}));
    with_key
        .headers_mut()
        .insert("authorization", "Bearer secret".parse().unwrap());
    assert_eq!(ask(router.address, with_key).await.status, 200);
    assert!(!worker.last().1.contains_key("authorization"));
}

fn key_line(name: &str, key: &str) -> String {
    let digest = Sha256::digest(key);
    let hash: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{name} {hash}\n")
}

#[tokio::test]
async fn keys_are_added_and_withdrawn_while_the_router_runs() {
    let worker = FakeWorker::start().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), key_line("alice", "old")).unwrap();
    let flag = format!("--api-keys={}", file.path().display());
    let router = router(&[&worker]).with(&flag).start().await;
    let status_with = async |key: &str| {
        let mut models = request("GET", "/v1/models", "");
        let bearer = format!("Bearer {key}").parse().unwrap();
        models.headers_mut().insert("authorization", bearer);
        ask(router.address, models).await.status.as_u16()
    };
    assert_eq!(
        (status_with("old").await, status_with("new").await),
        (200, 401)
    );
    std::fs::write(file.path(), key_line("alice", "new")).unwrap();
    eventually("the new key is valid", async || {
        status_with("new").await == 200
    })
    .await;
    assert_eq!(status_with("old").await, 401);
    // A file that makes no sense takes no key away.
    std::fs::write(file.path(), "alice nonsense\n").unwrap();
    eventually("the file was looked at", async || {
        metric(&router, "llava_router_api_key_file_errors_total", "").await >= 1.0
    })
    .await;
    assert_eq!(status_with("new").await, 200);
}

#[tokio::test]
async fn workers_see_the_key_that_they_ask_for_and_not_the_callers() {
    let worker = FakeWorker::start().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "worker-secret\n").unwrap();
    let flag = format!("--worker-key={}", file.path().display());
    let router = router(&[&worker]).with(&flag).start().await;
    let mut with_key = chat(&json!({}));
    let callers = "Bearer callers".parse().unwrap();
    with_key.headers_mut().insert("authorization", callers);
    let reply = ask(router.address, with_key).await;
    assert_eq!(reply.status, 200);
    assert_eq!(
        reply.headers["x-llava-worker"],
        worker.address.to_string().as_str()
    );
    assert_eq!(worker.last().1["authorization"], "Bearer worker-secret");
}

#[tokio::test]
async fn the_page_comes_whole_from_the_router_and_can_be_switched_off() {
    let worker = FakeWorker::start().await;
    let on = router(&[&worker]).start().await;
    let page = ask(on.address, request("GET", "/", "")).await;
    assert_eq!(page.headers["content-type"], "text/html; charset=utf-8");
    let policy = page.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("script-src 'self'"));
    let mut files = 0;
    for attribute in ["src=\"", "href=\""] {
        for rest in page.text().split(attribute).skip(1) {
            let target = rest.split('"').next().unwrap();
            if target.starts_with('#') || target == "data:," {
                continue;
            }
            assert_eq!(
                ask(on.address, request("GET", target, "")).await.status,
                200,
                "{target}"
            );
            files += 1;
        }
    }
    assert_eq!(files, 2);
    let off = router(&[&worker]).with("--no-page").start().await;
    assert_eq!(ask(off.address, request("GET", "/", "")).await.status, 404);
}

#[tokio::test]
async fn the_admin_port_shows_workers_and_metrics() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).start().await;
    ask(router.address, chat(&json!({"stream": true}))).await;
    let metrics = ask(router.admin_address, request("GET", "/metrics", "")).await;
    for name in [
        "llava_router_requests_total{pool=\"m\",code=\"200\"} 1",
        "llava_router_time_to_first_byte_seconds_count{pool=\"m\"} 1",
        "llava_router_request_duration_seconds_count{pool=\"m\"} 1",
        "llava_router_inter_chunk_seconds_count{pool=\"m\"}",
        "llava_router_in_flight{pool=\"m\",worker=",
        "llava_router_estimated_queue{",
        "llava_router_report_age_seconds{",
        "llava_router_sheds_total{pool=\"m\",reason=\"queue_full\"} 0",
        "reason=\"reported\"} 1",
        "llava_router_retries_total{pool=\"m\",reason=\"busy\",outcome=\"answered\"} 0",
        "llava_router_discovery_workers 1",
        "inference_pool_ready_pods{name=\"m\"} 1",
    ] {
        assert!(
            metrics.text().contains(name),
            "{name} is missing in\n{}",
            metrics.text()
        );
    }
    let table = ask(router.admin_address, request("GET", "/workers", ""))
        .await
        .json();
    let row = &table["pools"][0]["workers"][0];
    assert_eq!((&row["state"], &row["slots"]), (&json!("good"), &json!(8)));
    assert!(row["reported"]["ageSeconds"].is_number());
}

#[tokio::test]
async fn the_documented_metrics_are_those_there_are() {
    let page = include_str!("../../../docs/routing.md");
    let section = page.split_once("## Metrics").unwrap().1;
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let documented: BTreeMap<String, &str> = rows
        .flat_map(|row| {
            let names = row.split('|').nth(1).unwrap().split('`').skip(1).step_by(2);
            names.map(move |name| (name.to_owned(), row))
        })
        .collect();

    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).start().await;
    ask(router.address, chat(&json!({}))).await;
    let metrics = ask(router.admin_address, request("GET", "/metrics", "")).await;
    let kinds = metrics.text().lines();
    let kinds = kinds.filter_map(|line| line.strip_prefix("# TYPE llava_router_")?.split_once(' '));
    let there: BTreeSet<String> = kinds
        .map(|(name, kind)| match kind {
            "counter" => format!("{name}_total"),
            _ => name.to_owned(),
        })
        .collect();
    assert_eq!(there, documented.keys().cloned().collect::<BTreeSet<_>>());

    // And so are the words that their labels use.
    for line in metrics.text().lines() {
        let row = line.strip_prefix("llava_router_");
        let Some((name, rest)) = row.and_then(|row| row.split_once('{')) else {
            continue;
        };
        for label in rest.split('}').next().unwrap().split(',') {
            let (label, word) = label.split_once('=').unwrap();
            if !matches!(label, "pool" | "worker" | "le") {
                let word = word.trim_matches('"');
                assert!(documented[name].contains(word), "{word} of {line}");
            }
        }
    }
}
