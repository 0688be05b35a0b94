//! Tokens per second by the number of streams at once.

use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};
use shell::clock;

use crate::processor;
use crate::streams::median;
use crate::table::Table;
use crate::wire::Wires;
use crate::worker::{Worker, ask};

/// Rounds, each with every number of answers, so that what else the machine does meets all alike.
const ROUNDS: usize = 15;
const TOKENS: u64 = 400;
const ANSWERS: [usize; 5] = [1, 2, 4, 8, 16];

/// How answers are read.
#[derive(Clone, Copy, Debug)]
enum How {
    /// Whole, in one piece each: what batching itself gives.
    Whole,
    /// As events, one for each token: what a chat shows.
    Streams,
}

pub(crate) async fn measure(table: &mut Table) {
    let worker = Worker::start_demo(&[]).await;
    for how in [How::Whole, How::Streams] {
        let mut runs: [Vec<Run>; ANSWERS.len()] = Default::default();
        for round in 0..ROUNDS {
            for (answers, runs) in ANSWERS.into_iter().zip(&mut runs) {
                runs.push(run(&worker, how, answers, round).await);
            }
        }
        for (answers, runs) in ANSWERS.into_iter().zip(&runs) {
            note(table, how, answers, runs);
        }
        let [one, _, _, eight, _] = &runs;
        let pairs = one.iter().zip(eight);
        let ratios: Vec<_> = pairs.map(|(one, eight)| eight.rate / one.rate).collect();
        let ratio = median(ratios);
        table.check(
            &format!("demo checkpoint, tokens/s of 8 over 1, {how:?}"),
            format!("{ratio:.2}"),
            "≥ 3",
            ratio >= 3.0,
        );
    }
}

/// So many answers at once, once.
struct Run {
    /// Tokens per second.
    rate: f64,
    /// Seconds in steps, seconds of them in the model, and steps.
    times: [f64; 3],
    /// CPU time of the worker and of the client.
    busy: [Duration; 2],
}

async fn run(worker: &Worker, how: How, answers: usize, round: usize) -> Run {
    let wires = Wires::new(worker.api);
    let before = times(worker).await;
    let busy = || [worker.id(), std::process::id()].map(processor::time);
    let before_busy = busy();
    let began = clock::now();
    let bodies = (0..answers).map(|n| ask(&format!("What is in {n} {round}?"), TOKENS));
    let counts = match how {
        How::Whole => join_all(bodies.map(|body| whole(&wires, body))).await,
        How::Streams => join_all(bodies.map(|body| streamed(&wires, body))).await,
    };
    let seconds = (clock::now() - began).as_secs_f64();
    let (after, after_busy) = (times(worker).await, busy());
    let tokens: u64 = counts.iter().sum();
    assert_eq!(tokens, answers as u64 * TOKENS);
    Run {
        rate: tokens as f64 / seconds,
        times: [0, 1, 2].map(|at| after[at] - before[at]),
        busy: [0, 1].map(|at| after_busy[at] - before_busy[at]),
    }
}

fn note(table: &mut Table, how: How, answers: usize, runs: &[Run]) {
    let rate = median(runs.iter().map(|run| run.rate).collect());
    let [step, model, steps] =
        [0, 1, 2].map(|at| runs.iter().map(|run| run.times[at]).sum::<f64>());
    let tokens = (runs.len() * answers) as f64 * TOKENS as f64;
    let cpu = |at: usize| {
        let all: Duration = runs.iter().map(|run| run.busy[at]).sum();
        all.as_secs_f64() / tokens * 1e6
    };
    table.note(
        &format!("demo checkpoint, {answers} at once, {how:?}"),
        format!(
            "{rate:.0} tokens/s; a step takes {:.3} ms, {:.3} ms of it the model; CPU per token: worker {:.0} µs, client {:.0} µs",
            step / steps * 1e3,
            model / steps * 1e3,
            cpu(0),
            cpu(1)
        ),
    );
}

async fn whole(wires: &Wires, body: Value) -> u64 {
    let answer = wires.chat(&body.to_string()).await;
    let body: Value = serde_json::from_slice(&answer.body).unwrap();
    body["usage"]["completion_tokens"].as_u64().unwrap()
}

async fn streamed(wires: &Wires, mut body: Value) -> u64 {
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let end = wires.stream(&body.to_string()).await;
    let (_, tokens) = end.rsplit_once("\"completion_tokens\":").unwrap();
    let digits = tokens.find(|c: char| !c.is_ascii_digit()).unwrap();
    tokens[..digits].parse().unwrap()
}

/// Seconds in steps, seconds of them in the model, and steps.
pub(crate) async fn times(worker: &Worker) -> [f64; 3] {
    [
        worker.metric("llava_engine_step_seconds_total", "").await,
        worker.metric("llava_engine_model_seconds_total", "").await,
        worker.metric("llava_engine_steps_total", "").await,
    ]
}
