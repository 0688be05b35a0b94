//! `kubectl get` is how people look: each kind's columns, short name and category.

use std::time::Duration;

use crds::LlavaWorker;
use crds::worker::Phase;
use kube::Api;
use kube::api::ListParams;
use serde_json::json;
use tests::cluster::wait_for;
use tests::operator::Scene;

const DEPLOYMENT: &str = "NAME MODEL DESIRED READY UP-TO-DATE AVAILABLE QUEUE STATUS AGE";
const WORKER: &str = "NAME DEPLOYMENT PHASE READY QUEUE RUNNING NODE HEARTBEAT AGE";

/// A table as words, one list for each line.
fn words(table: &str) -> Vec<Vec<&str>> {
    table
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_shows_what_each_deployment_and_each_worker_is_doing() -> anyhow::Result<()> {
    let scene = Scene::start(1).await?;
    let spec = json!({"replicas": 1, "engine": {"native": {"quantization": "int8"}}});
    scene.serve("llava", spec).await?;
    let workers: Api<LlavaWorker> = scene.api();
    let told = async || {
        let all = workers.list(&ListParams::default()).await.ok()?;
        let status = all.items.into_iter().next()?.status?;
        (status.phase == Phase::Ready).then_some(())
    };
    wait_for("the worker to say so too", Duration::from_secs(20), told).await?;
    for (kind, narrow, wide) in [
        ("lld", DEPLOYMENT, "QUANT URL REVISION IMAGE"),
        ("llw", WORKER, "GPU LOADED REASON REVISION"),
    ] {
        let table = scene.cluster.kubectl(&["get", kind]).await?;
        let wider = scene.cluster.kubectl(&["get", kind, "-o", "wide"]).await?;
        let head = |table: &str| words(table)[0].join(" ");
        assert_eq!(head(&table), narrow, "{table}");
        assert_eq!(head(&wider), format!("{narrow} {wide}"), "{wider}");
    }

    let deployments = scene.cluster.kubectl(&["get", "lld"]).await?;
    let row = &words(&deployments)[1];
    let told = ["llava", "llava", "1", "1", "1", "1", "0", "Ready"];
    assert_eq!(row[..8], told, "{deployments}");
    let wide = scene.cluster.kubectl(&["get", "lld", "-o", "wide"]).await?;
    assert!(wide.contains("int8"), "{wide}");
    let workers = scene.cluster.kubectl(&["get", "llw"]).await?;
    let row = &words(&workers)[1];
    let told = ["llava", "Ready", "True", "0", "0", "fake-0", "Missing"];
    assert_eq!(row[1..8], told, "{workers}");

    let both = scene
        .cluster
        .kubectl(&["get", "llava", "-o", "name"])
        .await?;
    for kind in ["llavadeployment.llava.dev/", "llavaworker.llava.dev/"] {
        assert!(both.contains(kind), "{both}");
    }
    Ok(())
}
