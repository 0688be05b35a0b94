//! A cluster at rest is silent: heartbeats that carry the same load cause no
//! write, and an operator that starts anew finds everything as it should be. And
//! what makes Kubernetes write with every worker waits until it has a use.

use std::time::Duration;

use crds::name::{annotation, child_name};
use crds::{LlavaDeployment, LlavaDeploymentStatus, LlavaWorker};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use protocol::load::{LoadReport, Phase};
use serde_json::json;
use tests::Cluster;
use tests::cluster::wait_for;
use tests::fault::Faults;
use tests::operator::{Operator, Scene};

/// How long nothing may happen.
const REST: Duration = Duration::from_secs(25);

/// Renews every worker's Lease, as the workers would, each with a clock of its own.
async fn beat(cluster: &Cluster, number: i64, waiting: u32) -> anyhow::Result<()> {
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    let leases: Api<Lease> = Api::default_namespaced(cluster.client());
    for pod in pods.list(&ListParams::default()).await? {
        let report = LoadReport {
            phase: Phase::Serving,
            running: 1,
            waiting,
            slots: 4,
            captured_at_ms: number.unsigned_abs(),
            ..LoadReport::default()
        };
        let renewal = json!({
            "metadata": {"annotations": {annotation::LOAD: serde_json::to_string(&report)?}},
            "spec": {"holderIdentity": pod.uid(), "renewTime": MicroTime(Timestamp::from_second(number)?)},
        });
        leases
            .patch(
                &pod.name_any(),
                &PatchParams::default(),
                &Patch::Merge(renewal),
            )
            .await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_at_rest_is_silent_and_a_restart_writes_nothing() -> anyhow::Result<()> {
    let scene = Scene::start(2).await?;
    let (deployments, workers) = (scene.api::<LlavaDeployment>(), scene.api::<LlavaWorker>());
    scene.serve("llava", json!({"replicas": 3})).await?;
    let Scene { cluster, operator } = scene;

    // The load becomes known, in the deployment's status too.
    let mut number = 0;
    let known = async || {
        number += 1;
        beat(&cluster, number, 2).await.ok()?;
        let found = deployments.get("llava").await.ok()?.status?;
        let all = workers.list(&ListParams::default()).await.ok()?;
        let fresh = all.iter().all(|worker| {
            let status = worker.status.as_ref();
            status.is_some_and(|status| {
                status.heartbeat == crds::worker::Heartbeat::Fresh && status.queue_length == 2
            })
        });
        (fresh && found.queue_length == 6 && found.running_requests == 3).then_some(())
    };
    wait_for("the load to be known", Duration::from_secs(40), known).await?;

    let writes = operator.faults.writes().len();
    let rest = tokio::time::Instant::now() + REST;
    while tokio::time::Instant::now() < rest {
        number += 1;
        beat(&cluster, number, 2).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let after: Vec<_> = operator.faults.writes().split_off(writes);
    assert!(after.is_empty(), "{after:#?}");
    operator.kill().await;

    let again = Operator::start(&cluster, None, Faults::none()).await?;
    for _ in 0..5 {
        number += 1;
        beat(&cluster, number, 2).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(
        again.faults.writes().is_empty(),
        "{:#?}",
        again.faults.writes()
    );

    // Silence of all workers at once ends no worker: the API server is the suspect.
    let stale = async || {
        let all = workers.list(&ListParams::default()).await.ok()?;
        let stale = |worker: &LlavaWorker| {
            worker
                .status
                .as_ref()
                .is_some_and(|status| status.heartbeat == crds::worker::Heartbeat::Stale)
        };
        all.iter().all(stale).then_some(all.items.len())
    };
    assert_eq!(
        wait_for("all Leases to be stale", Duration::from_secs(40), stale).await?,
        3
    );
    let status = deployments.get("llava").await?.status.unwrap_or_default();
    assert_eq!(
        (status.available_replicas, status.summary.as_deref()),
        (3, Some("Ready"))
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_names_of_workers_are_there_once_enough_answer_and_not_before() -> anyhow::Result<()> {
    let scene = Scene::start(1).await?;
    let services: Api<Service> = scene.api();
    // A node has room for eight of them.
    let spec = json!({"replicas": 9, "accelerator": {"count": 1}});
    scene.create("llava", spec).await?;
    let eight = |status: &LlavaDeploymentStatus| {
        status.available_replicas == 8 && status.summary.as_deref() == Some("Unschedulable")
    };
    scene.wait("llava", eight).await?;
    assert_eq!(services.get_opt(&child_name("llava")).await?, None);

    scene.change("llava", json!({"replicas": 8})).await?;
    let ready = |status: &LlavaDeploymentStatus| status.summary.as_deref() == Some("Ready");
    scene.wait("llava", ready).await?;
    services.get(&child_name("llava")).await?;
    Ok(())
}
