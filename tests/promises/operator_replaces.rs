//! A worker whose Pod ended for good, or whose node is lost, counts for nothing
//! and is replaced, once.

use std::time::Duration;

use crds::{LlavaDeploymentStatus, LlavaWorker};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use tests::cluster::wait_for;
use tests::operator::Scene;

const SOON: Duration = Duration::from_secs(40);

fn is_ready(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    let ready = |all: &Vec<_>| {
        all.iter()
            .any(|one: &k8s_openapi::api::core::v1::PodCondition| {
                one.type_ == "Ready" && one.status == "True"
            })
    };
    pod.metadata.deletion_timestamp.is_none() && conditions.is_some_and(ready)
}

fn node(pod: &Pod) -> &str {
    let spec = pod.spec.as_ref();
    spec.and_then(|spec| spec.node_name.as_deref())
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_evicted_a_rejected_and_a_failed_worker_are_each_replaced_once() -> anyhow::Result<()> {
    let scene = Scene::start(2).await?;
    let ends = [
        ("evicted", "Evicted", "Evicted"),
        // How kubelet turns a Pod away whose device is gone by the time it arrives.
        ("rejected", "OutOfnvidia.com/gpu", "OutOfDevices"),
        ("failed", "DeadlineExceeded", "DeadlineExceeded"),
    ];
    for (name, word, told) in ends {
        scene
            .serve(name, json!({"replicas": 2, "accelerator": {"count": 1}}))
            .await?;
        let history = scene.record_pods().await?;
        let victim = scene.pods(name).await?.remove(0);
        let status = json!({"status": {
            "phase": "Failed", "reason": word, "message": "the node cannot keep it",
            "conditions": [{"type": "Ready", "status": "False"}],
        }});
        let pods: Api<Pod> = scene.api();
        pods.patch_status(
            &victim.name_any(),
            &PatchParams::default(),
            &Patch::Merge(status),
        )
        .await?;
        let replaced = async || {
            let pods = scene.pods(name).await.ok()?;
            let others = pods.iter().all(|pod| pod.uid() != victim.uid());
            (pods.len() == 2 && others && pods.iter().all(is_ready)).then_some(())
        };
        wait_for("the worker's successor", SOON, replaced).await?;
        let two =
            |status: &LlavaDeploymentStatus| status.available_replicas == 2 && status.replicas == 2;
        scene.wait(name, two).await?;
        assert_eq!(history.created().await?, 1, "{name} is replaced once");
        let of = ListParams::default().labels(&format!("llava.dev/deployment={name}"));
        let workers: Api<LlavaWorker> = scene.api();
        // The object of the ended one goes after its Pod and its Lease.
        let gone = async || {
            let left = workers.list(&of).await.ok()?.items.len();
            (left == 2).then_some(())
        };
        wait_for("the ended worker's object to go", SOON, gone).await?;
        // An Event follows the deed: nothing waits for it.
        let heard = async || {
            let events = scene.events("LlavaWorker").await.ok()?;
            events.iter().any(|event| event == told).then_some(())
        };
        wait_for(told, SOON, heard).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_of_a_lost_node_are_replaced_once_and_elsewhere() -> anyhow::Result<()> {
    let scene = Scene::start(2).await?;
    // Kubernetes waits five minutes by default before it gives a node's Pods up.
    let toleration = |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1});
    let tolerations = [
        "node.kubernetes.io/unreachable",
        "node.kubernetes.io/not-ready",
    ];
    let spread = json!([{
        "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"llava.dev/deployment": "llava"}},
    }]);
    let spec = json!({
        "replicas": 4, "tolerations": tolerations.map(toleration), "topologySpreadConstraints": spread,
    });
    scene.serve("llava", spec).await?;
    let pods = scene.pods("llava").await?;
    let lost = node(&pods[0]).to_owned();
    let gone = pods.iter().filter(|pod| node(pod) == lost).count();
    assert!(gone < 4, "all workers are on one node");
    let history = scene.record_pods().await?;
    scene.cluster.lose_node(&lost).await?;
    let elsewhere = async || {
        let pods = scene.pods("llava").await.ok()?;
        let there = pods
            .iter()
            .filter(|pod| is_ready(pod) && node(pod) != lost)
            .count();
        (there == 4).then_some(())
    };
    wait_for("four workers on the other node", SOON, elsewhere).await?;
    // Pods that cannot end count for nothing.
    let four =
        |status: &LlavaDeploymentStatus| status.available_replicas == 4 && status.replicas == 4;
    scene.wait("llava", four).await?;
    assert_eq!(history.created().await?, gone);
    Ok(())
}
