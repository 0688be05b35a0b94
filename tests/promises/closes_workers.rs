//! With `networkPolicy.enabled` packets reach a worker from the router alone, on
//! a real node; switched off again, from everybody.

use anyhow::{Context as _, ensure};
use serde_json::json;
use tests::ask::Question;
use tests::cluster::wait_for;
use tests::install::{Installed, NAMESPACE, PATIENCE, example_image, llava_shapes};

/// A Pod of the namespace that is none of ours.
async fn stranger(llava: &Installed) -> anyhow::Result<()> {
    let container = json!({
        "name": "probe", "image": "llava.dev/probe:1", "imagePullPolicy": "Never",
        "securityContext": {
            "runAsNonRoot": true, "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
        },
    });
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "stranger", "namespace": NAMESPACE},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [container]},
    });
    llava.cluster().apply(&pod.to_string()).await?;
    let ready = ["wait", "--for=condition=Ready", "pod/stranger"];
    llava
        .kubectl(&[&ready[..], &["--timeout=60s"]].concat())
        .await?;
    Ok(())
}

#[tokio::test]
async fn packets_reach_a_worker_from_the_router_alone() -> anyhow::Result<()> {
    let closed = ["networkPolicy.enabled=true"];
    let llava = Installed::with(&closed).await?;
    llava.apply(&llava_shapes()?).await?;
    llava.wait_ready("llava-shapes", 2).await?;
    stranger(&llava).await?;
    let worker = llava.workers("llava-shapes").await?.remove(0);
    let address = worker.status.and_then(|status| status.pod_ip);
    let address = address.context("a worker without an address")?;
    let get = async |port: u16, path: &str| {
        let url = format!("http://{address}:{port}{path}");
        let words = ["exec", "stranger", "--", "/probe", "get", &url];
        llava.kubectl(&words).await
    };
    // A policy takes hold of a Pod a moment after its start.
    wait_for("the worker to be closed", PATIENCE, async || {
        get(8000, "/v1/load").await.err()
    })
    .await?;
    // Probes and metrics stay open: the same Pod, the same worker, another port.
    get(9090, "/livez").await?;
    let question = Question::about(example_image("shapes.png")?, "What is in the image?");
    let answer = llava.asker().await?.stream(&question).await?;
    ensure!(answer.is_whole(), "the router reaches it: {answer:?}");
    ensure!(
        get(8000, "/v1/load").await.is_err(),
        "the stranger does not"
    );

    llava
        .helm("upgrade", &["networkPolicy.enabled=false"])
        .await?;
    let opened = wait_for("the worker to be open", PATIENCE, async || {
        get(8000, "/v1/load").await.ok()
    });
    let load = opened.await?;
    ensure!(load.contains("slots"), "{load}");
    Ok(())
}
