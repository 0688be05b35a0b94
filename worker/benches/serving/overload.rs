//! What is left of the goodput when ten times as much is asked for. The worker
//! has one processor of its own and the load generator the other, in both
//! phases: what asking takes is not taken from answering.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;
use shell::clock;

use crate::processor;
use crate::streams::{median, millis};
use crate::table::Table;
use crate::wire::Wires;
use crate::worker::{Worker, ask};

const SECONDS: u64 = 10;
const TOKENS: u64 = 64;
/// How many times the peak is asked for; a little more than what is wanted, as
/// the last requests of a run are still under way at its end.
const LOAD: f64 = 10.2;

#[derive(Default)]
struct Count {
    /// Answered in any way, in time.
    asked: AtomicU64,
    answered: AtomicU64,
    refused: AtomicU64,
    wrong: AtomicU64,
}

pub(crate) async fn measure(table: &mut Table) {
    // The worker is born on its processor, and makes as many threads as that is worth.
    processor::keep_to(std::process::id(), "0");
    let worker = Worker::start_demo(&[]).await;
    processor::keep_to(std::process::id(), "1");
    let wires = Arc::new(Wires::new(worker.api));
    let busy = || {
        (
            processor::time(worker.id()),
            processor::time(std::process::id()),
        )
    };
    let share =
        |before: Duration, after: Duration| (after - before).as_secs_f64() / SECONDS as f64 * 100.0;
    let before = busy();
    let peak = closed_loop(&wires).await;
    let after = busy();
    table.note(
        &format!("answers of {TOKENS} tokens, 32 callers that wait for one another"),
        format!(
            "{peak:.0} answers/s; the worker uses {:.0} % of its processor, the callers {:.0} % of theirs",
            share(before.0, after.0),
            share(before.1, after.1)
        ),
    );
    let memory = worker.memory();
    let before = busy();
    let (goodput, counts, refusals) = open_loop(&wires, peak * LOAD).await;
    let after = busy();
    let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let load = count(&counts.asked) as f64 / SECONDS as f64 / peak;
    table.check(
        "requests that got an answer of any kind, in peaks",
        format!("{load:.1}"),
        "≥ 10",
        load >= 10.0,
    );
    let left = goodput / peak;
    table.check(
        "goodput while that much is asked for",
        format!(
            "{goodput:.0} answers/s, {:.0} % of the peak; the worker uses {:.0} % of its processor, the callers {:.0} % of theirs",
            left * 100.0,
            share(before.0, after.0),
            share(before.1, after.1)
        ),
        "≥ 90 % of the peak",
        left >= 0.9,
    );
    table.check(
        "answers of that load that are neither good nor 429 or 503 with Retry-After",
        count(&counts.wrong).to_string(),
        "0",
        count(&counts.wrong) == 0,
    );
    table.note("time to a refusal, median", millis(median(refusals)));
    let grown = worker.memory().saturating_sub(memory);
    table.note(
        "memory that the overload added",
        format!("{:.1} MiB", grown as f64 / 1_048_576.0),
    );
    processor::keep_to(std::process::id(), "0,1");
}

/// Answers per second with as many callers as keep every slot busy.
async fn closed_loop(wires: &Wires) -> f64 {
    let end = clock::now() + Duration::from_secs(SECONDS);
    let callers = (0..32).map(|caller| async move {
        let mut done = 0;
        while clock::now() < end {
            let body = ask(&format!("{caller} {done}"), TOKENS).to_string();
            assert_eq!(wires.chat(&body).await.status, 200);
            done += u64::from(clock::now() < end);
        }
        done
    });
    let done: u64 = join_all(callers).await.iter().sum();
    done as f64 / SECONDS as f64
}

/// Sends `rate` requests a second, whatever comes back.
async fn open_loop(wires: &Arc<Wires>, rate: f64) -> (f64, Arc<Count>, Vec<Duration>) {
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
            let (wires, count) = (Arc::clone(wires), Arc::clone(&count));
            tasks.push(tokio::spawn(async move {
                let asked = clock::now();
                let answer = wires
                    .chat(&ask(&format!("{sent}"), TOKENS).to_string())
                    .await;
                let in_time = clock::now() < end;
                count.asked.fetch_add(in_time.into(), Ordering::Relaxed);
                let counted = match answer.status {
                    200 if in_time => &count.answered,
                    200 => return None,
                    429 | 503 if answer.later => &count.refused,
                    _ => &count.wrong,
                };
                counted.fetch_add(1, Ordering::Relaxed);
                (answer.status != 200).then(|| clock::now() - asked)
            }));
        }
    }
    let refusals = join_all(tasks).await;
    let refusals = refusals.into_iter().filter_map(|time| time.unwrap());
    let answered = count.answered.load(Ordering::Relaxed);
    (answered as f64 / SECONDS as f64, count, refusals.collect())
}
