//! Ten thousand short requests of every kind.

use crate::table::Table;
use crate::troubles;
use crate::worker::Worker;

pub(crate) async fn measure(table: &mut Table) {
    let worker = Worker::start_demo(&["--max-queue-length", "100"]).await;
    let outcome = troubles::run(&worker, 10_000).await;
    table.note(
        "10,000 short requests with aborts, bad images and bad JSON",
        format!(
            "{:.0} requests/s",
            outcome.requests as f64 / outcome.seconds
        ),
    );
    let grown = outcome.grown as f64 / 1_048_576.0;
    table.check(
        "memory at their end over memory after the first fifth",
        format!("{grown:+.1} MiB"),
        "≤ 16 MiB",
        grown <= 16.0,
    );
    table.check(
        "answers that are neither right nor a clear 4xx",
        outcome.wrong.len().to_string(),
        "0",
        outcome.wrong.is_empty(),
    );
    table.check(
        "slots and places in the queue still held",
        outcome.held.to_string(),
        "0",
        outcome.held == 0,
    );
}
