//! Who decides how many workers there are: a person, an autoscaler of Kubernetes
//! through the scale subresource, or the operator by the queues it is told of.

use std::time::Duration;

use crds::LlavaDeployment;
use crds::name::{ROUTER, annotation, label};
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition,
};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams};
use protocol::load::{Demand, RouterReport};
use serde_json::json;
use tests::cluster::wait_for;
use tests::operator::Scene;

const SOON: Duration = Duration::from_secs(40);

async fn demand(scene: &Scene, second: i64, in_flight: u32, waiting: u32) -> anyhow::Result<()> {
    let mut report = RouterReport::default();
    if in_flight + waiting > 0 {
        report
            .deployments
            .insert("default/llava".into(), Demand { in_flight, waiting });
    }
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {
            "name": "llava-router-0", "labels": {label::NAME: ROUTER},
            "annotations": {annotation::ROUTER_LOAD: serde_json::to_string(&report)?},
        },
        "spec": {"renewTime": MicroTime(Timestamp::from_second(second)?)},
    });
    let leases: Api<Lease> = scene.api();
    leases
        .patch(
            "llava-router-0",
            &PatchParams::apply("router").force(),
            &Patch::Apply(lease),
        )
        .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_sleeps_at_zero_wakes_for_one_request_and_grows_with_the_queue()
-> anyhow::Result<()> {
    let scene = Scene::start(2).await?;
    let spec = json!({"autoscaling": {
        "minReplicas": 0, "maxReplicas": 3, "targetQueueLength": 2, "scaleDownDelay": "2s", "idleTimeout": "2s",
    }});
    scene.create("llava", spec).await?;
    let asleep =
        |status: &crds::LlavaDeploymentStatus| status.summary.as_deref() == Some("ScaledToZero");
    scene.wait("llava", asleep).await?;
    let deployments: Api<LlavaDeployment> = scene.api();
    let mut second = 0;
    for (in_flight, waiting, workers) in [(0, 1, 1), (5, 0, 3)] {
        let grown = async || {
            // What a router does not say again counts for nothing soon.
            second += 1;
            demand(&scene, second, in_flight, waiting).await.ok()?;
            let status = deployments.get("llava").await.ok()?.status?;
            (status.available_replicas == workers).then_some(())
        };
        wait_for("workers for the demand", SOON, grown).await?;
    }
    demand(&scene, second + 1, 0, 0).await?;
    scene.wait("llava", asleep).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_scale_subresource_is_obeyed_and_its_selector_finds_the_pods() -> anyhow::Result<()> {
    let scene = Scene::start(2).await?;
    scene.serve("llava", json!({"replicas": 1})).await?;
    scene
        .cluster
        .kubectl(&["scale", "lld/llava", "--replicas=3"])
        .await?;
    scene
        .wait("llava", |status| status.available_replicas == 3)
        .await?;
    scene
        .cluster
        .kubectl(&[
            "wait",
            "lld/llava",
            "--for=condition=Available",
            "--timeout=20s",
        ])
        .await?;
    let deployments: Api<LlavaDeployment> = scene.api();
    let scale: Scale =
        serde_json::from_value(serde_json::to_value(deployments.get_scale("llava").await?)?)?;
    let status = scale.status.unwrap_or_default();
    let selector = status.selector.unwrap_or_default();
    let pods: Api<Pod> = scene.api();
    let found = pods.list(&ListParams::default().labels(&selector)).await?;
    assert_eq!((status.replicas, found.items.len()), (3, 3));
    let explained = scene
        .cluster
        .kubectl(&["explain", "lld.spec.model.source"])
        .await?;
    assert!(explained.contains("huggingFace"), "{explained}");
    let table = scene.cluster.kubectl(&["get", "lld"]).await?;
    for column in [
        "MODEL",
        "DESIRED",
        "READY",
        "UP-TO-DATE",
        "AVAILABLE",
        "QUEUE",
        "STATUS",
        "AGE",
    ] {
        assert!(table.contains(column), "{table}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_horizontal_pod_autoscaler_moves_the_number_and_the_operator_leaves_it()
-> anyhow::Result<()> {
    let scene = Scene::start(2).await?;
    scene.serve("llava", json!({"replicas": 1})).await?;
    // Outside its bounds an autoscaler acts without any figure, and a plain cluster has none.
    let autoscaler = |least: i32, most: i32| {
        json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "llava", "namespace": "default"},
            "spec": {
                "scaleTargetRef": {"apiVersion": "llava.dev/v1alpha1", "kind": "LlavaDeployment", "name": "llava"},
                "minReplicas": least, "maxReplicas": most,
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
            },
        })
    };
    for (least, most, count) in [(3, 5, 3), (1, 2, 2)] {
        let wish = autoscaler(least, most).to_string();
        scene.cluster.apply(&wish).await?;
        let obeyed = |status: &crds::LlavaDeploymentStatus| {
            status.desired_replicas == count
                && status.replicas == count
                && status.available_replicas == count
        };
        scene.wait("llava", obeyed).await?;
    }
    let autoscalers: Api<HorizontalPodAutoscaler> = scene.api();
    let able = async || {
        let status = autoscalers.get("llava").await.ok()?.status?;
        let able = |one: &HorizontalPodAutoscalerCondition| {
            one.type_ == "AbleToScale" && one.status == "True"
        };
        let found = status.conditions?.iter().any(able);
        (found && status.current_replicas == Some(2)).then_some(())
    };
    wait_for("the autoscaler to see what it did", SOON, able).await?;
    let deployment = scene.api::<LlavaDeployment>().get("llava").await?;
    assert_eq!(deployment.spec.replicas, Some(2));
    let writes = scene.operator.faults.writes();
    let own = writes
        .iter()
        .find(|call| call.path.ends_with("/llavadeployments/llava"));
    assert_eq!(own, None, "the operator never writes a spec");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_spare_gpu_a_rollout_goes_on_one_by_one_and_says_so() -> anyhow::Result<()> {
    let scene = Scene::start(2).await?;
    // Each fake node has eight.
    scene
        .serve("llava", json!({"replicas": 2, "accelerator": {"count": 8}}))
        .await?;
    scene
        .change("llava", json!({"image": "llava-worker:next"}))
        .await?;
    let is = |status: &crds::LlavaDeploymentStatus, truth: &str| {
        let mut conditions = status.conditions.iter();
        conditions.any(|one| one.type_ == "DeleteFirst" && one.status == truth)
    };
    let said = scene.wait("llava", |status| is(status, "True")).await?;
    assert!(said.available_replicas >= 1);
    let done = |status: &crds::LlavaDeploymentStatus| {
        status.updated_replicas == 2
            && status.available_replicas == 2
            && status.replicas == 2
            && is(status, "False")
    };
    scene.wait("llava", done).await?;
    Ok(())
}
