//! What the operator's caches do not show yet, and what no answer told it, does not mislead it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crds::name::annotation;
use crds::{LlavaDeploymentStatus, LlavaWorker};
use http::Method;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use protocol::load::{LoadReport, Phase};
use serde_json::json;
use tests::Cluster;
use tests::cluster::wait_for;
use tests::fault::{Call, Fate, Faults};
use tests::operator::{Operator, Scene, install_kinds};

const SOON: Duration = Duration::from_secs(40);

fn is_deletion(call: &Call) -> bool {
    call.method == Method::DELETE && call.path.contains("/llavaworkers/")
}

/// Renews a worker's Lease as the worker would; `second` is its clock.
async fn beat(scene: &Scene, name: &str, second: i64, waiting: u32) -> anyhow::Result<()> {
    let pod = scene.api::<Pod>().get(name).await?;
    let report = LoadReport {
        phase: Phase::Serving,
        waiting,
        slots: 4,
        ..LoadReport::default()
    };
    let renewal = json!({
        "metadata": {"annotations": {annotation::LOAD: serde_json::to_string(&report)?}},
        "spec": {"holderIdentity": pod.uid(), "renewTime": MicroTime(Timestamp::from_second(second)?)},
    });
    let leases: Api<Lease> = scene.api();
    leases
        .patch(name, &PatchParams::default(), &Patch::Merge(renewal))
        .await?;
    Ok(())
}

async fn workers(scene: &Scene) -> anyhow::Result<Vec<String>> {
    let workers: Api<LlavaWorker> = scene.api();
    let all = workers.list(&ListParams::default()).await?;
    let mut names: Vec<_> = all.iter().map(ResourceExt::name_any).collect();
    names.sort_unstable();
    Ok(names)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_whose_answer_is_lost_is_not_repeated_on_another_worker() -> anyhow::Result<()> {
    let cluster = Cluster::control_plane().with_fake_nodes(1).await?;
    install_kinds(&cluster.client()).await?;
    let lost = AtomicBool::new(false);
    let faults = Faults::new(move |call| {
        let first = is_deletion(call) && !lost.swap(true, Ordering::SeqCst);
        if first { Fate::Lose } else { Fate::Pass }
    });
    let operator = Operator::start(&cluster, None, faults.clone()).await?;
    let scene = Scene { cluster, operator };
    scene.serve("llava", json!({"replicas": 3})).await?;
    let names = workers(&scene).await?;
    for name in &names[1..] {
        beat(&scene, name, 1, 3).await?;
    }
    let loaded = |status: &LlavaDeploymentStatus| status.queue_length == 6;
    scene.wait("llava", loaded).await?;

    // The emptiest worker goes. Nobody hears of it, and meanwhile another becomes the emptiest.
    faults.hold(&["pods", "llavaworkers"]);
    scene.change("llava", json!({"replicas": 2})).await?;
    let deleted = || -> BTreeSet<String> {
        let writes = faults.writes().into_iter().filter(is_deletion);
        writes.map(|call| call.path).collect()
    };
    let begun = async || (!deleted().is_empty()).then_some(());
    wait_for("the deletion of a worker", SOON, begun).await?;
    beat(&scene, &names[2], 2, 0).await?;

    let victim = format!("/llavaworkers/{}", names[0]);
    let asked = async || {
        let asks = |call: &Call| call.method == Method::GET && call.path.ends_with(&victim);
        let asks = faults.calls().iter().filter(|call| asks(call)).count();
        (asks > 2 || deleted().len() > 1).then_some(())
    };
    wait_for("the operator to ask what became of it", SOON, asked).await?;
    let paths = deleted();
    assert!(
        paths.len() == 1 && paths.iter().all(|path| path.ends_with(&victim)),
        "{paths:?}"
    );

    faults.release();
    let two =
        |status: &LlavaDeploymentStatus| status.available_replicas == 2 && status.replicas == 2;
    scene.wait("llava", two).await?;
    let gone = async || (workers(&scene).await.ok()? == names[1..]).then_some(());
    wait_for("the one worker to go", SOON, gone).await?;
    Ok(())
}
