//! Workers that die, hang, slow down, lie or fail.

use std::time::Duration;

use futures::future::{join_all, select_all};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use crate::support::client::{Client, ask, begin, chat, request};
use crate::support::process::Process;
use crate::support::router::{heard_of_all, in_flight, metric, rows};
use crate::support::{FakeWorker, Reply, eventually, router, soon};

async fn four() -> [FakeWorker; 4] {
    [
        FakeWorker::start().await,
        FakeWorker::start().await,
        FakeWorker::start().await,
        FakeWorker::start().await,
    ]
}

/// `count` unary requests, one each `every`.
async fn flow(
    address: std::net::SocketAddr,
    count: usize,
    every: Duration,
    extra: serde_json::Value,
) -> Vec<Reply> {
    let started = tokio::time::Instant::now();
    let requests = (0..count).map(|number| {
        let extra = extra.clone();
        async move {
            tokio::time::sleep_until(started + every * u32::try_from(number).unwrap()).await;
            ask(address, chat(&extra)).await
        }
    });
    join_all(requests).await
}

#[tokio::test]
async fn no_unary_request_fails_when_a_worker_is_killed() {
    let workers = four().await;
    let router = router(&workers.iter().collect::<Vec<_>>()).start().await;
    let requests = flow(
        router.address,
        300,
        Duration::from_millis(5),
        json!({"first_ms": 30}),
    );
    let (replies, ()) = tokio::join!(requests, async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        workers[0].kill();
    });
    for reply in &replies {
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    assert!(metric(&router, "llava_router_retries_total", "").await >= 1.0);
    assert_eq!(in_flight(&router).await, 0);
}

#[tokio::test]
async fn a_stream_cut_by_a_dead_worker_ends_with_one_error_event() {
    let workers = [FakeWorker::start().await];
    let router = router(&[&workers[0]]).start().await;
    for tear in [false, true] {
        let wish = json!({"stream": true, "events": 9, "gap_ms": 20, "die_after": 3, "tear": tear});
        let reply = ask(router.address, chat(&wish)).await;
        assert!(reply.whole, "the connection was cut");
        let events = reply.events();
        assert_eq!(events.len(), 4, "{events:?}");
        let error: serde_json::Value = serde_json::from_str(&events[3]).unwrap();
        assert_eq!(error["error"]["type"], "stream_error");
        assert_eq!(error["error"]["code"], "worker_lost");
        assert!(!reply.text().contains("[DONE]"));
    }
}

#[tokio::test]
async fn streams_of_a_killed_worker_end_and_new_ones_go_elsewhere() {
    let workers = [FakeWorker::start().await, FakeWorker::start().await];
    let router = router(&[&workers[0], &workers[1]])
        .with("--poll-interval=60")
        .start()
        .await;
    heard_of_all(&router).await;
    let mut streams = Vec::new();
    for _ in 0..10 {
        streams.push(
            begin(
                router.address,
                chat(&json!({"stream": true, "events": 20, "gap_ms": 50})),
            )
            .await,
        );
    }
    workers[0].kill();
    let replies = join_all(streams.into_iter().map(|stream| stream.whole())).await;
    let broken = replies
        .iter()
        .filter(|r| r.text().contains("stream_error"))
        .count();
    assert_eq!(broken, 5);
    for reply in &replies {
        assert!(reply.whole);
        let events = reply.events();
        let errors = events.iter().filter(|e| e.contains("\"error\"")).count();
        let done = events.last().unwrap() == "[DONE]";
        assert_eq!(
            (errors, done),
            if reply.text().contains("stream_error") {
                (1, false)
            } else {
                (0, true)
            }
        );
    }
    for _ in 0..10 {
        assert_eq!(
            ask(router.address, chat(&json!({"stream": true})))
                .await
                .events()
                .len(),
            4
        );
    }
}

#[tokio::test]
async fn requests_at_a_hung_worker_move_on() {
    let workers = four().await;
    let router = router(&workers.iter().collect::<Vec<_>>())
        .with("--poll-timeout=0.3")
        .start()
        .await;
    let requests = flow(
        router.address,
        300,
        Duration::from_millis(10),
        json!({"first_ms": 20}),
    );
    let (replies, ()) = tokio::join!(requests, async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        workers[0].hang();
    });
    for reply in &replies {
        assert_eq!(reply.status, 200, "{reply:?}");
    }
    let down = rows(&router)
        .await
        .iter()
        .filter(|row| row["state"] == "down")
        .count();
    assert_eq!(down, 1);
}

#[tokio::test]
async fn a_killed_worker_that_comes_back_is_used_again() {
    let workers = [FakeWorker::start().await, FakeWorker::start().await];
    let router = router(&[&workers[0], &workers[1]]).start().await;
    workers[0].kill();
    eventually("the death is seen", async || {
        rows(&router).await.iter().any(|row| row["state"] == "down")
    })
    .await;
    let back = FakeWorker::at(workers[0].address, 8).await;
    eventually("the worker is used again", async || {
        ask(router.address, chat(&json!({}))).await;
        back.hits() > 0
    })
    .await;
}

#[tokio::test]
async fn a_worker_that_rested_is_on_trial_until_a_request_shows_that_it_is_well() {
    let workers = [FakeWorker::start().await, FakeWorker::start().await];
    // Only requests find out how the workers are.
    let router = router(&[&workers[0], &workers[1]])
        .with("--poll-interval=600")
        .start()
        .await;
    let name = workers[0].address.to_string();
    let is_in_state = async |state: &str| {
        let rows = rows(&router).await;
        let row = rows.iter().find(|row| row["name"] == name).unwrap();
        row["state"] == state
    };
    workers[0].kill();
    eventually("it is ejected", async || {
        ask(router.address, chat(&json!({}))).await;
        is_in_state("ejected").await
    })
    .await;
    let back = FakeWorker::at(workers[0].address, 8).await;
    eventually("it is on trial", async || is_in_state("trial").await).await;
    eventually("it is well", async || {
        ask(router.address, chat(&json!({}))).await;
        is_in_state("good").await
    })
    .await;
    assert!(back.hits() > 0);
}

#[tokio::test]
async fn a_worker_ten_times_slower_gets_little() {
    let workers = four().await;
    workers[0].slow_down(10);
    let router = router(&workers.iter().collect::<Vec<_>>()).start().await;
    let replies = flow(
        router.address,
        300,
        Duration::from_millis(10),
        json!({"first_ms": 20}),
    )
    .await;
    assert!(replies.iter().all(|reply| reply.status == 200));
    let hits = workers[0].hits();
    assert!(hits < 60, "the slow worker got {hits} of 300");
}

#[tokio::test]
async fn a_worker_that_claims_to_be_idle_gets_no_more_than_its_share() {
    let workers = four().await;
    workers[0].lie(0);
    let router = router(&workers.iter().collect::<Vec<_>>()).start().await;
    let replies = flow(
        router.address,
        400,
        Duration::from_millis(5),
        json!({"first_ms": 60}),
    )
    .await;
    assert!(replies.iter().all(|reply| reply.status == 200));
    let hits = workers[0].hits();
    assert!(hits < 200, "the liar got {hits} of 400");
}

#[tokio::test]
async fn requests_that_earn_errors_hurt_nobody_else() {
    let workers = four().await;
    let router = router(&workers.iter().collect::<Vec<_>>()).start().await;
    for (status, count) in [(400, 40), (500, 30)] {
        let earned =
            join_all((0..count).map(|_| ask(router.address, chat(&json!({"status": status})))))
                .await;
        for reply in earned {
            assert_eq!(reply.status, status);
            assert_eq!(reply.code(), format!("wished_{status}"));
        }
        let good = join_all((0..20).map(|_| ask(router.address, chat(&json!({}))))).await;
        assert!(good.iter().all(|reply| reply.status == 200));
    }
    let hits: usize = workers.iter().map(FakeWorker::hits).sum();
    assert_eq!(hits, 40 + 30 + 2 * 20, "an error was tried again elsewhere");
    assert!(rows(&router).await.iter().all(|row| row["state"] == "good"));
}

#[tokio::test]
async fn a_busy_answer_is_tried_elsewhere_and_counts_against_nobody() {
    // More often than 5xx would be forgiven.
    const TIMES: usize = 8;
    let workers = [FakeWorker::start().await, FakeWorker::start().await];
    let router = router(&[&workers[0], &workers[1]]).start().await;
    for status in [429, 503] {
        for _ in 0..TIMES {
            let reply = ask(router.address, chat(&json!({"status": status}))).await;
            assert_eq!(reply.status, status);
            assert!(reply.headers.contains_key("retry-after"));
        }
    }
    let all = 2 * TIMES;
    assert_eq!((workers[0].hits(), workers[1].hits()), (all, all));
    let failed = r#"reason="busy",outcome="failed""#;
    let retries = metric(&router, "llava_router_retries_total", failed).await;
    assert_eq!(retries, f64::from(u32::try_from(all).unwrap()));
    assert!(rows(&router).await.iter().all(|row| row["state"] == "good"));
}

#[tokio::test]
async fn a_worker_that_cannot_reach_its_engine_is_passed_over() {
    let workers = [FakeWorker::start().await, FakeWorker::start().await];
    let router = router(&[&workers[0], &workers[1]]).start().await;
    for status in [502, 504] {
        let reply = ask(router.address, chat(&json!({"status": status}))).await;
        assert_eq!(reply.status, status);
    }
    assert_eq!((workers[0].hits(), workers[1].hits()), (2, 2));
}

#[tokio::test]
async fn all_workers_away_is_a_clear_refusal() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).start().await;
    worker.kill();
    let reply = ask(router.address, chat(&json!({}))).await;
    assert_eq!(
        (reply.status.as_u16(), reply.code().as_str()),
        (502, "worker_unreachable")
    );
    assert!(reply.headers.contains_key("retry-after"));
    assert_eq!(in_flight(&router).await, 0);
}

#[tokio::test]
async fn a_request_that_makes_a_worker_close_its_connections_is_sent_twice_at_most() {
    const KEPT: usize = 6;
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).start().await;
    let together = (0..KEPT).map(|_| ask(router.address, chat(&json!({"gated": true}))));
    let (replies, ()) = tokio::join!(join_all(together), async {
        eventually("each has a connection", async || worker.hits() == KEPT).await;
        worker.open_gate(true);
    });
    assert!(replies.iter().all(|reply| reply.status == 200));
    let reply = ask(router.address, chat(&json!({"vanish": true}))).await;
    assert_eq!(
        (reply.status.as_u16(), reply.code().as_str()),
        (502, "worker_unreachable")
    );
    let times = worker.hits() - KEPT;
    assert!((1..=2).contains(&times), "it was sent {times} times");
}

#[tokio::test]
async fn retries_over_the_budget_wait_their_turn() {
    const CALLERS: usize = 12;
    const BUDGET: usize = 3;
    let workers = [FakeWorker::start().await, FakeWorker::start().await];
    workers[0].turn_away();
    let router = router(&[&workers[0], &workers[1]]).start().await;
    let callers = (0..CALLERS).map(|_| ask(router.address, chat(&json!({"gated": true}))));
    let (replies, turned_away) = tokio::join!(join_all(callers), async {
        let over = async || metric(&router, "llava_router_retry_budget_exhausted_total", "").await;
        eventually("all came, and as many again as may", async || {
            let [turned_away, let_in] = [workers[0].hits(), workers[1].hits()];
            let over = over().await as usize;
            turned_away + let_in == CALLERS + BUDGET && turned_away == BUDGET + over
        })
        .await;
        let turned_away = workers[0].hits();
        workers[1].open_gate(true);
        turned_away
    });
    assert!(replies.iter().all(|reply| reply.status == 200));
    let answered = r#"reason="busy",outcome="answered""#;
    let retries = metric(&router, "llava_router_retries_total", answered).await;
    assert_eq!(retries as usize, turned_away);
}

#[tokio::test]
async fn a_hung_worker_is_suspected_by_its_missing_first_bytes() {
    let workers = [FakeWorker::start().await, FakeWorker::start().await];
    // So patient that they say nothing in time.
    let router = router(&[&workers[0], &workers[1]])
        .with("--poll-timeout=600")
        .start()
        .await;
    workers[0].hang();
    let name = workers[0].address.to_string();
    let hung = async || {
        let rows = rows(&router).await;
        rows.into_iter().find(|row| row["name"] == name).unwrap()
    };
    let mut callers = Vec::new();
    eventually("the hung worker owes a first byte", async || {
        let caller = tokio::spawn(ask(router.address, chat(&json!({"stream": true}))));
        callers.push(AbortOnDropHandle::new(caller));
        hung().await["inFlight"].as_u64() > Some(0)
    })
    .await;
    eventually("it is suspect", async || hung().await["state"] == "suspect").await;
    let owed = hung().await["inFlight"].clone();
    for _ in 0..10 {
        assert_eq!(ask(router.address, chat(&json!({}))).await.status, 200);
    }
    assert_eq!(hung().await["inFlight"], owed);
}

#[tokio::test]
async fn a_request_stays_with_the_only_worker_though_its_probes_stall() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker]).with("--poll-timeout=0.1").start().await;
    let caller = tokio::spawn(ask(router.address, chat(&json!({"gated": true}))));
    eventually("the request is at the worker", async || worker.hits() == 1).await;
    worker.leave_probes();
    eventually("the worker is down", async || {
        rows(&router).await[0]["state"] == "down"
    })
    .await;
    // Long enough that a request would have left.
    let probes = worker.probes();
    eventually("it stays down", async || worker.probes() > probes + 8).await;
    worker.open_gate(true);
    assert_eq!(caller.await.unwrap().status, 200);
    assert_eq!(worker.hits(), 1);
}

#[tokio::test]
async fn a_worker_that_breaks_every_stream_off_rests_longer_and_longer() {
    let workers = [FakeWorker::start().await, FakeWorker::start().await];
    workers[0].break_streams();
    let router = router(&[&workers[0], &workers[1]]).start().await;
    let started = tokio::time::Instant::now();
    let mut broken = 0;
    for _ in 0..60 {
        let reply = ask(router.address, chat(&json!({"stream": true}))).await;
        broken += u32::from(reply.text().contains("worker_lost"));
    }
    // After the third it rests 1 s, 2 s, 4 s, with one request on trial between.
    let trials = (started.elapsed().as_secs() + 1).ilog2();
    assert!((3..=3 + trials).contains(&broken), "{broken} broke off");
    assert!(metric(&router, "llava_router_ejections_total", "").await >= 1.0);
}

#[tokio::test]
async fn what_a_worker_said_is_passed_on_though_the_next_cannot_be_reached() {
    let workers = [FakeWorker::start().await, FakeWorker::start().await];
    let router = router(&[&workers[0], &workers[1]]).start().await;
    workers[1].kill();
    eventually("the death is seen", async || {
        rows(&router).await.iter().any(|row| row["state"] == "down")
    })
    .await;
    for unsized_error in [false, true] {
        let wish = json!({"status": 429, "unsized_error": unsized_error});
        let reply = ask(router.address, chat(&wish)).await;
        assert_eq!(
            (reply.status.as_u16(), reply.code().as_str()),
            (429, "wished_429")
        );
    }
}

#[tokio::test]
async fn a_router_that_may_open_no_more_files_blames_no_worker() {
    const FILES: usize = 48;
    let worker = FakeWorker::start().await;
    let router = Process::start_with_files(router(&[&worker]), FILES).await;
    eventually("it was probed", async || worker.probes() > 0).await;
    let callers = join_all([(); 2].map(|()| Client::connect(router.address))).await;
    let idle = join_all([(); FILES].map(|()| TcpStream::connect(router.address))).await;
    eventually("all files are open", async || {
        router.files_below(FILES) == FILES
    })
    .await;
    // The probes' connection is there for one of them.
    let sent = callers
        .into_iter()
        .map(|client| Box::pin(client.send(chat(&json!({"gated": true})))));
    let (refused, _, others) = soon("a refusal", select_all(sent)).await;
    let refused = refused.unwrap().whole().await;
    assert_eq!(
        (refused.status.as_u16(), refused.code().as_str()),
        (503, "router_overloaded")
    );
    drop((idle, others));
    assert_eq!(ask(router.address, chat(&json!({}))).await.status, 200);
    let table = ask(router.admin_address, request("GET", "/workers", "")).await;
    let row = &table.json()["pools"][0]["workers"][0];
    assert_eq!(
        (&row["state"], &row["lastError"]),
        (&json!("good"), &json!(null))
    );
}

#[tokio::test]
async fn a_connection_that_does_not_come_costs_no_more_than_the_time_of_the_request() {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = socket.listen(1).unwrap();
    let address = full.local_addr().unwrap();
    let mut queued = Vec::new();
    let second = Duration::from_secs(1);
    while let Ok(stream) = tokio::time::timeout(second, TcpStream::connect(address)).await {
        queued.push(stream.unwrap());
    }
    let router = router(&[])
        .with(&format!("--worker=http://{address}"))
        .with("--connect-timeout=600")
        .start()
        .await;
    let mut request = chat(&json!({}));
    let limit = "0.2".parse().unwrap();
    request.headers_mut().insert("x-request-timeout", limit);
    let reply = ask(router.address, request).await;
    assert_eq!(
        (reply.status.as_u16(), reply.code().as_str()),
        (504, "request_timeout")
    );
}
