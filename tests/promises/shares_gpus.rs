//! A node with one GPU, as far as Kubernetes knows, and a kubelet that counts it:
//! a rollout without a spare one, and a worker that arrives when it is gone.

use anyhow::{Context as _, ensure};
use crds::resources::Accelerator;
use crds::{LlavaDeployment, LlavaDeploymentStatus};
use k8s_openapi::api::core::v1::{Binding, Node, Pod};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use tests::cluster::{REAL_NODE, wait_for};
use tests::install::{Installed, PATIENCE, llava_shapes};

/// One worker with one GPU.
fn with_gpu(name: &str) -> anyhow::Result<LlavaDeployment> {
    let mut deployment = llava_shapes()?;
    deployment.metadata.name = Some(name.into());
    deployment.spec.replicas = Some(1);
    let accelerator: Accelerator = serde_json::from_value(json!({}))?;
    deployment.spec.accelerator = Some(accelerator);
    Ok(deployment)
}

async fn wait_status(
    llava: &Installed,
    name: &str,
    what: &str,
    good: impl Fn(&LlavaDeploymentStatus) -> bool,
) -> anyhow::Result<()> {
    let found = wait_for(what, PATIENCE, async || {
        let status = llava
            .api::<LlavaDeployment>()
            .get(name)
            .await
            .ok()?
            .status?;
        good(&status).then_some(())
    });
    if let Err(error) = found.await {
        let state = llava.kubectl(&["get", "lld,llw", "-o", "yaml"]).await?;
        anyhow::bail!("{error}; the state is\n{state}");
    }
    Ok(())
}

#[tokio::test]
async fn one_gpu_is_handed_over_in_a_rollout_and_never_given_twice() -> anyhow::Result<()> {
    let llava = Installed::with(&["operator.extraArgs={--surge-patience=2s}"]).await?;
    let nodes: Api<Node> = Api::all(llava.client());
    let patch = Patch::Merge(json!({"status": {"capacity": {"nvidia.com/gpu": "1"}}}));
    nodes
        .patch_status(REAL_NODE, &PatchParams::default(), &patch)
        .await?;
    let mut deployment = with_gpu("first")?;
    llava.apply(&deployment).await?;
    llava.wait_ready("first", 1).await?;

    let before = llava.worker_uids("first").await?;
    let annotations = &mut deployment.spec.pod.annotations;
    annotations.insert("example.com/reason".into(), "new template".into());
    llava.apply(&deployment).await?;
    let one_by_one = |status: &LlavaDeploymentStatus| {
        let mut conditions = status.conditions.iter();
        conditions.any(|one| one.type_ == "DeleteFirst" && one.status == "True")
    };
    wait_status(&llava, "first", "the condition DeleteFirst", one_by_one).await?;
    llava.wait_ready("first", 1).await?;
    ensure!(llava.worker_uids("first").await?.is_disjoint(&before));

    llava.apply(&with_gpu("second")?).await?;
    let full = |status: &LlavaDeploymentStatus| {
        let mut conditions = status.conditions.iter();
        status.summary.as_deref() == Some("Unschedulable")
            && conditions.any(|one| one.message.contains("Insufficient nvidia.com/gpu"))
    };
    wait_status(&llava, "second", "the GPU to be missed", full).await?;
    // The scheduler sends nobody to a full node, so the test does: kubelet counts for itself.
    let sent = llava.workers("second").await?.remove(0);
    let name = sent.name_any();
    let binding: Binding = serde_json::from_value(json!({
        "metadata": {"name": name},
        "target": {"apiVersion": "v1", "kind": "Node", "name": REAL_NODE},
    }))?;
    let pods: Api<Pod> = llava.api();
    let _: serde_json::Value = pods
        .create_subresource("binding", &name, &PostParams::default(), &binding)
        .await?;
    let told = wait_for("the rejection to be told", PATIENCE, async || {
        let events = ["get", "events", "-o", "jsonpath={.items[*].reason}"];
        let reasons = llava.kubectl(&events).await.ok()?;
        reasons.contains("OutOfDevices").then_some(())
    });
    told.await?;
    let replaced = wait_for("a successor of the rejected worker", PATIENCE, async || {
        let workers = llava.workers("second").await.ok()?;
        let fresh = |pod: &Pod| pod.uid() != sent.uid();
        (workers.len() == 1 && workers.iter().all(fresh)).then_some(())
    });
    replaced.await.context("OutOfnvidia.com/gpu")?;
    llava.wait_ready("first", 1).await?;
    Ok(())
}
