//! More work than the workers can do, and models without workers.

use std::time::Duration;

use futures::future::join_all;
use serde_json::json;

use crate::support::client::{ask, begin, chat, request};
use crate::support::process::Process;
use crate::support::router::{in_flight, metric};
use crate::support::{FakeWorker, eventually, router};

#[tokio::test]
async fn ten_times_too_much_is_refused_and_the_rest_is_served_at_full_speed() {
    let workers = [
        FakeWorker::with_slots(4).await,
        FakeWorker::with_slots(4).await,
    ];
    let router = Process::start(router(&[&workers[0], &workers[1]]).with("--max-queued=16")).await;
    let address = router.address;
    let work = json!({"first_ms": 100});
    // Callers that come back at once, for `seconds`: served, refused, and served per second.
    let run = async |callers: usize, seconds: u64| {
        let start = tokio::time::Instant::now();
        let caller = async || {
            let (mut good, mut refused) = (0_u32, 0_u32);
            while start.elapsed() < Duration::from_secs(seconds) {
                let reply = ask(address, chat(&work)).await;
                match reply.status.as_u16() {
                    200 => good += 1,
                    429 | 503 => {
                        assert!(reply.headers.contains_key("retry-after"), "{reply:?}");
                        assert!(reply.headers.contains_key("retry-after-ms"));
                        refused += 1;
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                    other => panic!("{other}"),
                }
            }
            (good, refused)
        };
        let counts = join_all((0..callers).map(|_| caller())).await;
        let good: u32 = counts.iter().map(|(good, _)| good).sum();
        let refused: u32 = counts.iter().map(|(_, refused)| refused).sum();
        (refused, f64::from(good) / start.elapsed().as_secs_f64())
    };
    let (_, peak) = run(8, 1).await;
    let before = router.memory();
    let (refused, rate) = run(80, 4).await;
    assert!(refused > 100, "{refused}");
    assert!(rate >= 0.9 * peak, "{rate} a second against {peak} alone");
    let grown = router.memory().saturating_sub(before) >> 20;
    assert!(grown < 16, "grew by {grown} MiB");
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let worker = FakeWorker::with_slots(1).await;
    let router = router(&[&worker]).with("--max-queued=1").start().await;
    let long = json!({"stream": true, "events": 2, "gap_ms": 60_000});
    let first = begin(router.address, chat(&long)).await;
    let mut others = Vec::new();
    for _ in 0..2 {
        others.push(tokio::spawn(ask(router.address, chat(&json!({})))));
    }
    eventually("one waits", async || {
        metric(&router, "llava_router_waiting{", "").await == 1.0
    })
    .await;
    let reply = ask(router.address, chat(&json!({}))).await;
    assert_eq!(
        (reply.status.as_u16(), reply.code().as_str()),
        (429, "queue_full")
    );
    let wait: u64 = reply.headers["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=60).contains(&wait));
    drop(first);
    for other in others {
        assert_eq!(other.await.unwrap().status, 200);
    }
    assert_eq!(in_flight(&router).await, 0);
}

#[tokio::test]
async fn a_wait_that_is_too_long_ends_in_503() {
    let worker = FakeWorker::with_slots(1).await;
    let router = router(&[&worker]).with("--queue-timeout=0.2").start().await;
    let long = json!({"stream": true, "events": 2, "gap_ms": 60_000});
    let _first = begin(router.address, chat(&long)).await;
    let _second = tokio::spawn(ask(router.address, chat(&json!({"first_ms": 60_000}))));
    eventually("the worker is full", async || worker.hits() == 2).await;
    let reply = ask(router.address, chat(&json!({}))).await;
    assert_eq!(
        (reply.status.as_u16(), reply.code().as_str()),
        (503, "queue_timeout")
    );
    assert!(reply.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn a_held_stream_that_finds_no_worker_in_time_ends_in_one_error_event() {
    let worker = FakeWorker::with_slots(1).await;
    let router = router(&[&worker])
        .with("--queue-timeout=0.5")
        .with("--keep-alive=0.1")
        .start()
        .await;
    let long = json!({"stream": true, "events": 2, "gap_ms": 60_000});
    let _first = begin(router.address, chat(&long)).await;
    let _second = tokio::spawn(ask(router.address, chat(&json!({"first_ms": 60_000}))));
    eventually("the worker is full", async || worker.hits() == 2).await;
    let reply = ask(router.address, chat(&json!({"stream": true}))).await;
    assert_eq!(reply.status, 200);
    assert!(reply.text().contains(": keep-alive\n\n"));
    let events = reply.events();
    assert_eq!(events.len(), 1);
    assert!(events[0].contains("queue_timeout"), "{events:?}");
}

#[tokio::test]
async fn the_models_are_asked_from_the_workers_when_none_is_named() {
    let worker = FakeWorker::start().await;
    let router = Process::start_asking(router(&[&worker])).await;
    eventually("the model is known", async || {
        let models = ask(router.address, request("GET", "/v1/models", ""))
            .await
            .json();
        models["data"][0]["id"] == "m"
    })
    .await;
    let ready = ask(router.admin_address, request("GET", "/readyz", "")).await;
    assert_eq!(ready.status, 200);
}
