//! Who decides how many workers there are: a person, an autoscaler of Kubernetes
//! through the scale subresource, or the operator by the queues it is told of.

use crds::LlavaDeployment;
use crds::name::{ROUTER, annotation, label};
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use protocol::load::{Demand, RouterReport};
use serde_json::json;
use tests::Cluster;
use tests::fault::Faults;
use tests::operator::{Operator, deployment, install_kinds, wait_status};

async fn demand(
    cluster: &Cluster,
    second: i64,
    in_flight: u32,
    waiting: u32,
) -> anyhow::Result<()> {
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
    let leases: Api<Lease> = Api::default_namespaced(cluster.client());
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
    let cluster = Cluster::control_plane().with_fake_nodes(2).await?;
    install_kinds(&cluster.client()).await?;
    let client = cluster.client();
    let deployments: Api<LlavaDeployment> = Api::default_namespaced(client.clone());
    let _operator = Operator::start(&cluster, None, Faults::none()).await?;
    let spec = json!({"autoscaling": {
        "minReplicas": 0, "maxReplicas": 3, "targetQueueLength": 2, "scaleDownDelay": "2s", "idleTimeout": "2s",
    }});
    deployments
        .create(&PostParams::default(), &deployment("llava", spec)?)
        .await?;
    let asleep =
        |status: &crds::LlavaDeploymentStatus| status.summary.as_deref() == Some("ScaledToZero");
    wait_status(&client, "default", "llava", asleep).await?;
    demand(&cluster, 1, 0, 1).await?;
    wait_status(&client, "default", "llava", |status| {
        status.available_replicas == 1
    })
    .await?;
    demand(&cluster, 2, 5, 0).await?;
    wait_status(&client, "default", "llava", |status| {
        status.available_replicas == 3
    })
    .await?;
    demand(&cluster, 3, 0, 0).await?;
    wait_status(&client, "default", "llava", asleep).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_scale_subresource_is_obeyed_and_its_selector_finds_the_pods() -> anyhow::Result<()> {
    let cluster = Cluster::control_plane().with_fake_nodes(2).await?;
    install_kinds(&cluster.client()).await?;
    let client = cluster.client();
    let deployments: Api<LlavaDeployment> = Api::default_namespaced(client.clone());
    let _operator = Operator::start(&cluster, None, Faults::none()).await?;
    deployments
        .create(
            &PostParams::default(),
            &deployment("llava", json!({"replicas": 1}))?,
        )
        .await?;
    wait_status(&client, "default", "llava", |status| {
        status.available_replicas == 1
    })
    .await?;
    cluster
        .kubectl(&["scale", "lld/llava", "--replicas=3"])
        .await?;
    wait_status(&client, "default", "llava", |status| {
        status.available_replicas == 3
    })
    .await?;
    cluster
        .kubectl(&[
            "wait",
            "lld/llava",
            "--for=condition=Available",
            "--timeout=20s",
        ])
        .await?;
    let scale: Scale =
        serde_json::from_value(serde_json::to_value(deployments.get_scale("llava").await?)?)?;
    let status = scale.status.unwrap_or_default();
    let selector = status.selector.unwrap_or_default();
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let found = pods.list(&ListParams::default().labels(&selector)).await?;
    assert_eq!((status.replicas, found.items.len()), (3, 3));
    let explained = cluster
        .kubectl(&["explain", "lld.spec.model.source"])
        .await?;
    assert!(explained.contains("huggingFace"), "{explained}");
    let table = cluster.kubectl(&["get", "lld"]).await?;
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
async fn without_a_spare_gpu_a_rollout_goes_on_one_by_one_and_says_so() -> anyhow::Result<()> {
    let cluster = Cluster::control_plane().with_fake_nodes(2).await?;
    install_kinds(&cluster.client()).await?;
    let client = cluster.client();
    let deployments: Api<LlavaDeployment> = Api::default_namespaced(client.clone());
    let _operator = Operator::start(&cluster, None, Faults::none()).await?;
    // Each fake node has eight.
    let spec = json!({"replicas": 2, "accelerator": {"count": 8}});
    deployments
        .create(&PostParams::default(), &deployment("llava", spec)?)
        .await?;
    wait_status(&client, "default", "llava", |status| {
        status.available_replicas == 2
    })
    .await?;
    let change = Patch::Merge(json!({"spec": {"image": "llava-worker:next"}}));
    deployments
        .patch("llava", &PatchParams::default(), &change)
        .await?;
    let is = |status: &crds::LlavaDeploymentStatus, truth: &str| {
        let mut conditions = status.conditions.iter();
        conditions.any(|one| one.type_ == "DeleteFirst" && one.status == truth)
    };
    let said = wait_status(&client, "default", "llava", |status| is(status, "True")).await?;
    assert!(said.available_replicas >= 1);
    let done = wait_status(&client, "default", "llava", |status| {
        status.updated_replicas == 2 && status.available_replicas == 2 && status.replicas == 2
    });
    assert!(is(&done.await?, "False"));
    Ok(())
}
