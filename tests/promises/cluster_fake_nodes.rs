//! Pods on fake nodes load, fail and end as their annotations say.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tests::{
    Cluster,
    cluster::{fake_node, wait_for},
};

const SOON: Duration = Duration::from_secs(60);

/// Two fake nodes, and one Pod.
struct Scene {
    cluster: Cluster,
    pods: Api<Pod>,
}

impl Scene {
    async fn with(annotations: Value) -> anyhow::Result<Self> {
        // When the only node is lost, Kubernetes suspects itself and moves nothing.
        let cluster = Cluster::control_plane().with_fake_nodes(2).await?;
        let pods: Api<Pod> = Api::default_namespaced(cluster.client());
        let pod = json!({
            "metadata": {"name": "worker", "annotations": annotations},
            "spec": {"containers": [{
                "name": "worker",
                "image": "worker",
                "resources": {"limits": {"nvidia.com/gpu": 1}},
            }]},
        });
        pods.create(&PostParams::default(), &serde_json::from_value(pod)?)
            .await?;
        Ok(Self { cluster, pods })
    }

    async fn until(&self, what: &str, holds: impl Fn(&Pod) -> bool) -> anyhow::Result<Pod> {
        let found = wait_for(what, SOON, async || {
            self.pods.get("worker").await.ok().filter(&holds)
        });
        Ok(found.await?)
    }

    async fn annotate(&self, fault: Option<&str>) -> anyhow::Result<()> {
        let patch = json!({"metadata": {"annotations": {"fake.llava.dev/fault": fault}}});
        let patch = Patch::Merge(patch);
        self.pods
            .patch("worker", &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }
}

fn ready(pod: &Pod) -> Option<&str> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions
        .iter()
        .find(|condition| condition.type_ == "Ready")?;
    Some(&ready.status)
}

fn is_ready(pod: &Pod) -> bool {
    ready(pod) == Some("True")
}

fn waiting(pod: &Pod) -> Option<&str> {
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    containers
        .first()?
        .state
        .as_ref()?
        .waiting
        .as_ref()?
        .reason
        .as_deref()
}

#[tokio::test]
async fn a_pod_with_a_gpu_is_ready_at_once() -> anyhow::Result<()> {
    let scene = Scene::with(json!({})).await?;
    let pod = scene.until("a ready pod", is_ready).await?;
    let status = pod.status.unwrap_or_default();
    assert!(status.pod_ip.is_some());
    let node = pod.spec.and_then(|spec| spec.node_name).unwrap_or_default();
    assert!([fake_node(0), fake_node(1)].contains(&node));
    Ok(())
}

#[tokio::test]
async fn a_pod_loads_as_long_as_it_is_told() -> anyhow::Result<()> {
    let scene = Scene::with(json!({"fake.llava.dev/load-seconds": "3s"})).await?;
    let pod = scene
        .until("a running pod", |pod| ready(pod).is_some())
        .await?;
    assert_eq!(ready(&pod), Some("False"));
    let pod = scene.until("a ready pod", is_ready).await?;
    let conditions = pod
        .status
        .and_then(|status| status.conditions)
        .unwrap_or_default();
    let since = |kind: &str| {
        let found = conditions.iter().find(|condition| condition.type_ == kind);
        found.and_then(|condition| condition.last_transition_time.clone())
    };
    let (start, end) = (
        since("Initialized").expect("a start"),
        since("Ready").expect("an end"),
    );
    let seconds = end.0.as_second() - start.0.as_second();
    assert!((2..=30).contains(&seconds), "{seconds} s");
    Ok(())
}

#[tokio::test]
async fn readiness_flaps_until_the_fault_is_lifted() -> anyhow::Result<()> {
    let scene = Scene::with(json!({"fake.llava.dev/fault": "readiness-flapping"})).await?;
    for _ in 0..2 {
        scene.until("a ready pod", is_ready).await?;
        scene
            .until("a pod that is not", |pod| !is_ready(pod))
            .await?;
    }
    scene.annotate(None).await?;
    scene.until("a ready pod", is_ready).await?;
    Ok(())
}

#[tokio::test]
async fn a_container_is_killed_for_memory_and_recovers() -> anyhow::Result<()> {
    let scene = Scene::with(json!({})).await?;
    scene.until("a ready pod", is_ready).await?;
    scene.annotate(Some("oom-killed")).await?;
    let crashing = |pod: &Pod| waiting(pod) == Some("CrashLoopBackOff");
    let pod = scene.until("a crash", crashing).await?;
    let containers = pod
        .status
        .and_then(|status| status.container_statuses)
        .unwrap_or_default();
    let last = containers[0]
        .last_state
        .as_ref()
        .and_then(|state| state.terminated.as_ref());
    assert_eq!(
        last.and_then(|last| last.reason.as_deref()),
        Some("OOMKilled")
    );
    assert_eq!(containers[0].restart_count, 1);
    scene.annotate(None).await?;
    scene.until("a ready pod", is_ready).await?;
    Ok(())
}

#[tokio::test]
async fn an_image_cannot_be_pulled() -> anyhow::Result<()> {
    let scene = Scene::with(json!({"fake.llava.dev/fault": "image-pull-error"})).await?;
    let pod = scene
        .until("a failing pull", |pod| {
            waiting(pod) == Some("ImagePullBackOff")
        })
        .await?;
    let phase = pod.status.and_then(|status| status.phase);
    assert_eq!(phase.as_deref(), Some("Pending"));
    scene.annotate(None).await?;
    scene.until("a ready pod", is_ready).await?;
    Ok(())
}

#[tokio::test]
async fn a_pod_fails_for_good() -> anyhow::Result<()> {
    let scene = Scene::with(json!({"fake.llava.dev/fault": "failed"})).await?;
    let failed = |pod: &Pod| {
        pod.status
            .as_ref()
            .and_then(|status| status.phase.as_deref())
            == Some("Failed")
    };
    scene.until("a failed pod", failed).await?;
    Ok(())
}

#[tokio::test]
async fn a_pod_stays_terminating_until_the_fault_is_lifted() -> anyhow::Result<()> {
    let scene = Scene::with(json!({"fake.llava.dev/fault": "stuck-terminating"})).await?;
    scene.until("a ready pod", is_ready).await?;
    scene
        .pods
        .delete("worker", &DeleteParams::default())
        .await?;
    let stuck = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
    scene.until("a terminating pod", stuck).await?;
    scene.annotate(None).await?;
    wait_for("the pod's end", SOON, async || {
        scene
            .pods
            .get_opt("worker")
            .await
            .ok()?
            .is_none()
            .then_some(())
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_lost_node_takes_the_readiness_of_its_pods() -> anyhow::Result<()> {
    let scene = Scene::with(json!({})).await?;
    let pod = scene.until("a ready pod", is_ready).await?;
    let node = pod.spec.and_then(|spec| spec.node_name).unwrap_or_default();
    let nodes: Api<Node> = Api::all(scene.cluster.client());
    scene.cluster.lose_node(&node).await?;
    wait_for("a taint that moves pods away", SOON, async || {
        let spec = nodes.get(&node).await.ok()?.spec?;
        let taints = spec.taints.unwrap_or_default();
        let unreachable = |taint: &k8s_openapi::api::core::v1::Taint| {
            taint.key == "node.kubernetes.io/unreachable" && taint.effect == "NoExecute"
        };
        taints.iter().any(unreachable).then_some(())
    })
    .await?;
    scene
        .until("a pod that is not ready", |pod| ready(pod) == Some("False"))
        .await?;
    Ok(())
}

#[tokio::test]
async fn a_hundred_pods_run_on_five_fake_nodes() -> anyhow::Result<()> {
    let cluster = Cluster::control_plane().with_fake_nodes(5).await?;
    cluster
        .kubectl(&[
            "create",
            "deployment",
            "web",
            "--image=web",
            "--replicas=100",
        ])
        .await?;
    cluster
        .kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"])
        .await?;
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    let running = ListParams::default().fields("status.phase=Running");
    assert_eq!(pods.list(&running).await?.items.len(), 100);
    Ok(())
}
