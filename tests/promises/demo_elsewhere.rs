//! The demo runs on whatever cluster kubectl points at, and takes back all that
//! it brought.

use std::path::Path;

use anyhow::ensure;
use tests::cluster::{Cluster, Parts, run};
use tests::install::{loaded_cluster, root};

#[tokio::test]
async fn the_demo_runs_on_the_current_cluster_and_leaves_as_it_came() -> anyhow::Result<()> {
    let cluster = loaded_cluster().await?;
    let before = owned(&cluster).await?;
    let told = demo(&cluster, &[]).await?;
    for told_of in [
        "llavadeployment.llava.dev/llava-shapes",
        "llavaworker.llava.dev/llava-shapes-",
    ] {
        ensure!(told.contains(told_of), "no {told_of} in\n{told}");
    }
    let answers: Vec<&str> = told
        .split("\n$ examples/ask.sh ")
        .skip(1)
        .filter_map(|asked| asked.lines().nth(1))
        .collect();
    ensure!(
        answers.len() == 2 && answers.iter().all(|answer| answer.ends_with('.')),
        "two answers in whole sentences, not {answers:?}"
    );
    demo(&cluster, &["down"]).await?;
    let after = owned(&cluster).await?;
    ensure!(after == before, "left behind:\n{after}\nof\n{before}");
    Ok(())
}

/// What `hack/demo` prints to someone whose kubectl has this cluster as its current one.
async fn demo(cluster: &Cluster, words: &[&str]) -> anyhow::Result<String> {
    let parts = Parts::of(&["control-plane", "charts"]).await?;
    let tools = ["kubectl", "helm"].map(|tool| parts.path(tool));
    let tools = tools
        .iter()
        .filter_map(|tool| tool.parent())
        .map(Path::to_owned);
    let system = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(tools.chain(std::env::split_paths(&system)))?;
    // In the cluster's own network, so that the forwarded port meets nobody.
    let mut demo = cluster.inside(root().join("hack/demo"));
    demo.args(words)
        .env("PATH", path)
        .env("CLUSTER", "current")
        .envs(cluster.environment());
    Ok(run(&mut demo).await?)
}

/// Names of everything that a release could own.
async fn owned(cluster: &Cluster) -> anyhow::Result<String> {
    let kinds = "namespaces,customresourcedefinitions,clusterroles,clusterrolebindings,\
                 validatingadmissionpolicies,validatingadmissionpolicybindings";
    Ok(cluster.kubectl(&["get", kinds, "--output", "name"]).await?)
}
