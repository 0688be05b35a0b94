//! More work than the workers can do, and models without workers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::join_all;
use llava_router::Router;
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::support::client::{ask, begin, chat, request};
use crate::support::process::Process;
use crate::support::router::{in_flight, metric, rows};
use crate::support::{FakeWorker, Reply, eventually, router, soon};

#[tokio::test]
async fn ten_times_too_much_fills_every_place_and_refuses_the_rest() {
    const CALLERS: usize = 80;
    const AT_WORKERS: usize = 2 * (4 + 1);
    const QUEUED: usize = 16;
    let workers = [
        FakeWorker::with_slots(4).await,
        FakeWorker::with_slots(4).await,
    ];
    let router = Process::start(router(&[&workers[0], &workers[1]]).with("--max-queued=16")).await;
    workers_told_their_slots(&router, 4).await;
    let hits = || workers.iter().map(FakeWorker::hits).sum::<usize>();
    let open_gates = |open| workers.iter().for_each(|worker| worker.open_gate(open));
    let mut settled = None;
    for wave in 0..6 {
        let hits_before = hits();
        open_gates(false);
        let refused = Arc::new(AtomicUsize::new(0));
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let (address, refused) = (router.address, Arc::clone(&refused));
            callers.spawn(async move {
                let reply = ask(address, chat(&json!({"gated": true}))).await;
                if reply.status != 200 {
                    assert_eq!(reply.code(), "queue_full");
                    assert!(reply.headers.contains_key("retry-after"), "{reply:?}");
                    assert!(reply.headers.contains_key("retry-after-ms"));
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let told = || refused.load(Ordering::Relaxed);
        eventually("all places are taken and the rest is refused", async || {
            hits() - hits_before == AT_WORKERS && told() >= CALLERS - AT_WORKERS - QUEUED
        })
        .await;
        open_gates(true);
        while let Some(caller) = callers.join_next().await {
            caller.unwrap();
        }
        // Whoever was let in was served. An estimate may be wrong by a few places.
        let served = hits() - hits_before;
        assert_eq!(served + told(), CALLERS);
        assert!(served + 4 >= AT_WORKERS + QUEUED, "{served} were served");
        match settled {
            None => settled = (wave == 1).then(|| router.memory()),
            Some(before) => {
                let grown = router.memory().saturating_sub(before) >> 20;
                assert!(grown < 8, "grew by {grown} MiB");
            }
        }
    }
}

#[tokio::test]
async fn a_minute_of_ten_times_too_much_costs_neither_goodput_nor_memory() {
    const SLOTS: u32 = 2;
    const WORK_MS: u64 = 200;
    const MINUTE: Duration = Duration::from_secs(60);
    // What four slots do in a second is 20; ten times that comes.
    const EVERY: Duration = Duration::from_millis(5);
    let workers = [
        FakeWorker::with_slots(SLOTS).await,
        FakeWorker::with_slots(SLOTS).await,
    ];
    let flags = router(&[&workers[0], &workers[1]])
        .with("--max-queued=16")
        .with("--warm-up=0.1");
    let router = Process::start(flags).await;
    workers_told_their_slots(&router, SLOTS).await;
    let work = json!({"first_ms": WORK_MS});
    // Just busy: as many callers as slots and the headroom of one at each worker.
    let start = tokio::time::Instant::now();
    let busy = Duration::from_secs(6);
    let callers = (0..2 * (SLOTS + 1)).map(|_| async {
        let mut answered = 0_u32;
        while start.elapsed() < busy {
            answered += u32::from(ask(router.address, chat(&work)).await.status == 200);
        }
        answered
    });
    let peak: u32 = join_all(callers).await.iter().sum();
    let peak = f64::from(peak) / start.elapsed().as_secs_f64();

    let mut callers = JoinSet::new();
    let mut settled = 0;
    let mut most = 0;
    let start = tokio::time::Instant::now();
    let mut next = start;
    while next < start + MINUTE {
        tokio::time::sleep_until(next).await;
        next += EVERY;
        let (address, request) = (router.address, chat(&work));
        callers.spawn(async move { (ask(address, request).await, start.elapsed()) });
        if next >= start + MINUTE / 6 {
            settled = if settled == 0 {
                router.memory()
            } else {
                settled
            };
            most = most.max(router.memory());
        }
    }
    let replies = callers.join_all().await;
    let is_answer = |reply: &Reply| reply.status == 200;
    for (reply, _) in replies.iter().filter(|(reply, _)| !is_answer(reply)) {
        assert!(matches!(reply.status.as_u16(), 429 | 503), "{reply:?}");
        assert!(reply.headers.contains_key("retry-after"), "{reply:?}");
    }
    let in_time = replies
        .iter()
        .filter(|(reply, at)| is_answer(reply) && *at <= MINUTE);
    let goodput = in_time.count() as f64 / MINUTE.as_secs_f64();
    assert!(goodput >= 0.9 * peak, "{goodput} a second, at best {peak}");
    let grown = most.saturating_sub(settled) >> 20;
    assert!(grown < 8, "grew by {grown} MiB");
}

/// Until its first report a worker is taken to have many slots.
async fn workers_told_their_slots(router: &Process, slots: u32) {
    eventually("the workers told their slots", async || {
        let table = ask(router.admin_address, request("GET", "/workers", "")).await;
        let rows = table.json()["pools"][0]["workers"].clone();
        rows.as_array()
            .is_some_and(|rows| rows.iter().all(|row| row["slots"] == slots))
    })
    .await;
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

#[tokio::test]
async fn those_who_wait_are_served_in_the_order_they_came() {
    const CALLERS: usize = 6;
    // A slot and the headroom of one.
    const AT_WORKER: usize = 2;
    let worker = FakeWorker::with_slots(1).await;
    let router = router(&[&worker]).start().await;
    eventually("the worker told its slots", async || {
        rows(&router).await[0]["slots"] == 1
    })
    .await;
    let mut callers = VecDeque::new();
    for number in 0..CALLERS {
        let long = json!({"number": number, "stream": true, "events": 2, "gap_ms": 600_000});
        let caller = tokio::spawn(begin(router.address, chat(&long)));
        callers.push_back(AbortOnDropHandle::new(caller));
        eventually("it has its place", async || {
            worker.bodies().len() + waiting(&router).await == number + 1
        })
        .await;
    }
    for came in AT_WORKER + 1..=CALLERS {
        callers.pop_front();
        eventually("the next one came", async || worker.bodies().len() == came).await;
    }
    let numbers = worker.bodies().into_iter().map(|body| {
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        body["number"].as_u64().unwrap() as usize
    });
    assert_eq!(
        numbers.collect::<Vec<_>>(),
        (0..CALLERS).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn requests_are_held_up_to_a_number_and_a_time_while_a_model_has_no_worker() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker])
        .with("--max-held=2")
        .with("--hold-timeout=2")
        .start()
        .await;
    worker.drain(true);
    is_in_state(&router, "leaving").await;
    let held = [(); 2].map(|()| tokio::spawn(ask(router.address, chat(&json!({})))));
    eventually("two wait", async || waiting(&router).await == 2).await;
    let mut refused = vec![(ask(router.address, chat(&json!({}))).await, "hold_full")];
    for held in held {
        refused.push((held.await.unwrap(), "no_worker"));
    }
    for (reply, code) in refused {
        assert_eq!((reply.status.as_u16(), reply.code().as_str()), (503, code));
        assert!(reply.headers.contains_key("retry-after"), "{reply:?}");
        let shed = format!("reason=\"{code}\"");
        assert!(metric(&router, "llava_router_sheds_total", &shed).await >= 1.0);
    }
    assert_eq!(worker.hits(), 0);
}

#[tokio::test]
async fn a_model_without_workers_leaves_room_for_the_bodies_of_others() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).with("--max-buffered=4MiB").start().await;
    worker.drain(true);
    is_in_state(&router, "leaving").await;
    let large = json!({"filler": "x".repeat(900_000)});
    let held = tokio::spawn(ask(router.address, chat(&large)));
    eventually("one waits", async || waiting(&router).await == 1).await;
    let reply = ask(router.address, chat(&large)).await;
    let code = "waiting_bytes_full";
    assert_eq!((reply.status.as_u16(), reply.code().as_str()), (503, code));
    assert!(reply.headers.contains_key("retry-after"), "{reply:?}");
    let shed = format!("reason=\"{code}\"");
    let sheds = metric(&router, "llava_router_sheds_total", &shed).await;
    assert_eq!(sheds, 1.0);
    worker.drain(false);
    assert_eq!(held.await.unwrap().status, 200);
}

#[tokio::test]
async fn held_requests_are_answered_when_the_model_has_a_worker() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).with("--keep-alive=0.1").start().await;
    worker.drain(true);
    is_in_state(&router, "leaving").await;
    let whole = tokio::spawn(ask(router.address, chat(&json!({}))));
    let mut stream = begin(router.address, chat(&json!({"stream": true}))).await;
    let first = stream.next().await.unwrap().unwrap();
    assert_eq!(first, ": keep-alive\n\n");
    eventually("both wait", async || waiting(&router).await == 2).await;
    worker.drain(false);
    let stream = soon("the end", stream.whole()).await;
    assert_eq!((stream.status.as_u16(), stream.events().len()), (200, 4));
    assert_eq!(whole.await.unwrap().status, 200);
}

async fn waiting(router: &Router) -> usize {
    metric(router, "llava_router_waiting{", "").await as usize
}

async fn is_in_state(router: &Router, state: &str) {
    eventually(state, async || rows(router).await[0]["state"] == state).await;
}
