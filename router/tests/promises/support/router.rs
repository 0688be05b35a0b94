//! A router within the test's process.

use clap::Parser as _;
use llava_router::Router;
use llava_router::args::RouterArgs;
use serde_json::Value;

use super::client::{ask, request};
use super::{FakeWorker, eventually};

/// Describes a router before it starts.
#[derive(Debug)]
pub(crate) struct Builder {
    args: Vec<String>,
}

/// A router over these workers, which serve model `m`.
pub(crate) fn router(workers: &[&FakeWorker]) -> Builder {
    let mut args: Vec<String> = [
        "llava-router",
        "--listen=127.0.0.1:0",
        "--admin-listen=127.0.0.1:0",
    ]
    .map(str::to_owned)
    .into();
    args.push("--poll-interval=0.1".to_owned());
    args.push("--settle=0.2".to_owned());
    args.extend(
        workers
            .iter()
            .map(|worker| format!("--worker=http://{}", worker.address)),
    );
    Builder { args }
}

impl Builder {
    /// Sets a flag, instead of its value so far.
    pub(crate) fn with(mut self, flag: &str) -> Self {
        if let Some((name, _)) = flag.split_once('=') {
            self.args.retain(|arg| arg.split('=').next() != Some(name));
        }
        self.args.push(flag.to_owned());
        self
    }

    pub(crate) fn flags(&self) -> &[String] {
        &self.args[1..]
    }

    /// Starts it and waits until it knows its workers.
    pub(crate) async fn start(self) -> Router {
        let workers = self
            .args
            .iter()
            .filter(|arg| arg.starts_with("--worker="))
            .count();
        let model = self.args.iter().any(|arg| arg.starts_with("--model="));
        let mut args = self.args;
        if !model {
            args.push("--model=m".to_owned());
        }
        let router = Router::start(RouterArgs::parse_from(args)).await.unwrap();
        eventually("the router knows its workers", async || {
            rows(&router).await.len() == workers
        })
        .await;
        router
    }
}

/// The rows of `/workers`.
pub(crate) async fn rows(router: &Router) -> Vec<Value> {
    let table = ask(router.admin_address, request("GET", "/workers", ""))
        .await
        .json();
    let pools = table["pools"].as_array().unwrap();
    pools
        .iter()
        .flat_map(|pool| pool["workers"].as_array().unwrap().clone())
        .collect()
}

/// Waits until each worker told its load.
pub(crate) async fn heard_of_all(router: &Router) {
    eventually("all workers were heard of", async || {
        rows(router)
            .await
            .iter()
            .all(|row| row["reported"].is_object())
    })
    .await;
}

/// Requests at workers.
pub(crate) async fn in_flight(router: &Router) -> u64 {
    rows(router)
        .await
        .iter()
        .map(|row| row["inFlight"].as_u64().unwrap())
        .sum()
}

/// The sum of a metric's rows that hold `label`.
pub(crate) async fn metric(router: &Router, name: &str, label: &str) -> f64 {
    let text = ask(router.admin_address, request("GET", "/metrics", "")).await;
    let rows = text
        .text()
        .lines()
        .filter(|line| line.starts_with(name) && line.contains(label));
    rows.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap())
        .sum()
}
