//! What is left of the goodput when ten times as much is asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;
use shell::clock;

use crate::streams::{median, millis};
use crate::table::Table;
use crate::worker::{Worker, ask};

const SECONDS: u64 = 8;
const TOKENS: u64 = 64;

#[derive(Default)]
struct Count {
    answered: AtomicU64,
    refused: AtomicU64,
    wrong: AtomicU64,
}

pub(crate) async fn measure(table: &mut Table) {
    let worker = Arc::new(Worker::start_demo(&[]).await);
    let peak = closed_loop(&worker).await;
    table.note(
        &format!("answers of {TOKENS} tokens, 32 callers that wait for one another"),
        format!("{peak:.0} answers/s"),
    );
    let memory = worker.memory();
    let (goodput, count, refusals) = open_loop(&worker, peak * 10.0).await;
    let asked = count.answered.load(Ordering::Relaxed) + count.refused.load(Ordering::Relaxed);
    let load = asked as f64 / SECONDS as f64 / peak;
    let share = goodput / peak;
    table.check(
        &format!("goodput while {load:.1} times as much is asked for"),
        format!("{goodput:.0} answers/s, {:.0} % of the peak", share * 100.0),
        "≥ 90 % of the peak",
        share >= 0.9,
    );
    table.check(
        "answers of that load that are neither good nor 429 or 503 with Retry-After",
        format!("{}", count.wrong.load(Ordering::Relaxed)),
        "0",
        count.wrong.load(Ordering::Relaxed) == 0,
    );
    table.note("time to a refusal, median", millis(median(refusals)));
    let grown = worker.memory().saturating_sub(memory);
    table.note(
        "memory that the overload added",
        format!("{:.1} MiB", grown as f64 / 1_048_576.0),
    );
}

/// Answers per second with as many callers as keep every slot busy.
async fn closed_loop(worker: &Arc<Worker>) -> f64 {
    let end = clock::now() + Duration::from_secs(SECONDS);
    let callers = (0..32).map(|caller| async move {
        let mut done = 0;
        while clock::now() < end {
            let response = worker.chat(&ask(&format!("{caller} {done}"), TOKENS)).await;
            assert_eq!(response.status(), 200);
            response.bytes().await.unwrap();
            done += 1;
        }
        done
    });
    let done: u64 = join_all(callers).await.iter().sum();
    done as f64 / SECONDS as f64
}

/// Sends `rate` requests a second, whatever comes back.
async fn open_loop(worker: &Arc<Worker>, rate: f64) -> (f64, Arc<Count>, Vec<Duration>) {
    let count = Arc::new(Count::default());
    let began = clock::now();
    let end = began + Duration::from_secs(SECONDS);
    let mut tasks = Vec::new();
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    let mut sent = 0.0;
    while clock::now() < end {
        ticks.tick().await;
        while sent < (clock::now() - began).as_secs_f64() * rate {
            sent += 1.0;
            let (worker, count) = (Arc::clone(worker), Arc::clone(&count));
            tasks.push(tokio::spawn(async move {
                let asked = clock::now();
                let response = worker.chat(&ask(&format!("{sent}"), TOKENS)).await;
                let status = response.status().as_u16();
                let later = response.headers().contains_key("retry-after");
                response.bytes().await.unwrap();
                match status {
                    200 if clock::now() < end => _ = count.answered.fetch_add(1, Ordering::Relaxed),
                    200 => {}
                    429 | 503 if later => _ = count.refused.fetch_add(1, Ordering::Relaxed),
                    _ => _ = count.wrong.fetch_add(1, Ordering::Relaxed),
                }
                (status != 200).then(|| clock::now() - asked)
            }));
        }
    }
    let refusals = join_all(tasks).await;
    let refusals = refusals.into_iter().filter_map(|time| time.unwrap());
    let answered = count.answered.load(Ordering::Relaxed);
    (answered as f64 / SECONDS as f64, count, refusals.collect())
}
