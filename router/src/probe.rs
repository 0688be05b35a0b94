//! One task per worker: asks for its load several times a second. Any answer at
//! all proves that it lives; two missing ones in a row call it down.

use std::sync::Arc;
use std::time::Duration;

use protocol::load::LoadReport;
use rand::Rng as _;

use crate::dispatch::estimate::Own;
use crate::dispatch::member::Worker;
use crate::dispatch::pool::Pool;
use crate::upstream::ask::{AskError, ask};

const PATH: &str = "/v1/load";

/// How often and how patiently is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// Between two questions, give or take a fifth.
    pub(crate) interval: Duration,
    /// For an answer.
    pub(crate) timeout: Duration,
}

/// Looks after one worker, for ever.
pub(crate) async fn tend(worker: Arc<Worker>, pool: Arc<Pool>, pace: Pace) {
    loop {
        look(&worker, &pool, pace.timeout).await;
        worker.links.sweep(shell::clock::now());
        tokio::time::sleep(jittered(pace.interval)).await;
    }
}

async fn look(worker: &Arc<Worker>, pool: &Arc<Pool>, patience: Duration) {
    let before = pool.own(worker);
    let answer = ask(&worker.links, PATH, patience).await;
    let now = shell::clock::now();
    let failure = match answer {
        Ok((_, body)) => {
            if let Ok(load) = serde_json::from_slice::<LoadReport>(&body) {
                // Taken somewhere between question and answer.
                let own_then = middle(before, pool.own(worker));
                pool.reported(worker, load, own_then, now);
            }
            None
        }
        // It answers, only not this question: some other server of the
        // OpenAI API, or one that is busy.
        Err(AskError::Status(_) | AskError::Unreadable(_)) => None,
        // It was not even asked.
        Err(error) if error.is_ours() => return,
        Err(error) => Some(error.to_string()),
    };
    pool.probed(worker, failure, now);
}

fn middle(a: Own, b: Own) -> Own {
    Own {
        count: a.count.midpoint(b.count),
        weight: a.weight.midpoint(b.weight),
    }
}

fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(rand::rng().random_range(0.8..1.2))
}
