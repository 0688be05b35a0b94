//! llava-operator: see `--help`.

use std::sync::Arc;

use anyhow::Context as _;
use clap::Parser;
use llava_operator::args::Args;
use llava_operator::metrics::Metrics;
use llava_operator::run::run;
use prometheus_client::registry::Registry;
use shell::readiness::Readiness;
use shell::{admin, shutdown};

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    args.shell.start()?;
    let stop = shutdown::on_signals().context("cannot listen for signals")?;
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let readiness = Readiness::default();
    let listener = admin::bind(args.shell.admin_listen).await?;
    let routes = admin::routes(readiness.clone(), Arc::new(registry));
    let client = kube::Client::try_default()
        .await
        .context("cannot find the API server: neither a kubeconfig nor a service account")?;
    let here = client.default_namespace().to_owned();
    let operator = run(
        client,
        args.settings(&here),
        args.candidate(&here),
        &readiness,
        metrics,
        stop.clone(),
    );
    tokio::select! {
        ended = operator => ended.context("the operator ended"),
        ended = admin::serve(listener, routes, stop) => ended.context("the admin port failed"),
    }
}
