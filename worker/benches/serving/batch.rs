//! Tokens per second by the number of streams at once.

use futures::future::join_all;
use shell::clock;

use crate::streams::{median, read};
use crate::table::Table;
use crate::worker::{Worker, ask};

const ROUNDS: usize = 5;
const TOKENS: u64 = 400;

pub(crate) async fn measure(table: &mut Table) {
    let worker = Worker::start_demo(&[]).await;
    let mut alone = 0.0;
    for streams in [1, 2, 4, 8, 16] {
        let mut rates = Vec::new();
        let (mut step, mut model, mut steps) = (0.0, 0.0, 0.0);
        for round in 0..ROUNDS {
            let before = times(&worker).await;
            let began = clock::now();
            let bodies = (0..streams).map(|n| ask(&format!("What is in {n} {round}?"), TOKENS));
            let seen = join_all(bodies.map(|body| read(&worker, body))).await;
            let tokens: u64 = seen.iter().map(|seen| seen.tokens).sum();
            assert_eq!(tokens, streams as u64 * TOKENS);
            rates.push(tokens as f64 / (clock::now() - began).as_secs_f64());
            let after = times(&worker).await;
            step += after[0] - before[0];
            model += after[1] - before[1];
            steps += after[2] - before[2];
        }
        let rate = median(rates);
        let what = format!("demo checkpoint, {streams} streams at once");
        let inside = format!(
            "{rate:.0} tokens/s; a step takes {:.2} ms, {:.2} ms of it the model",
            step / steps * 1e3,
            model / steps * 1e3
        );
        table.note(&what, inside);
        if streams == 1 {
            alone = rate;
        }
        if streams == 8 {
            let ratio = rate / alone;
            table.check(
                "demo checkpoint, tokens/s of 8 streams over 1",
                format!("{ratio:.2}"),
                "≥ 3",
                ratio >= 3.0,
            );
        }
    }
}

/// Seconds in steps, seconds of them in the model, and steps.
pub(crate) async fn times(worker: &Worker) -> [f64; 3] {
    [
        worker.metric("llava_engine_step_seconds_total", "").await,
        worker.metric("llava_engine_model_seconds_total", "").await,
        worker.metric("llava_engine_steps_total", "").await,
    ]
}
