//! What the operator's caches do not show yet, and what no answer told it, does not mislead it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crds::name::annotation;
use crds::{LlavaDeployment, LlavaDeploymentStatus, LlavaWorker};
use futures::future::try_join_all;
use http::Method;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use protocol::load::{LoadReport, Phase};
use serde_json::json;
use tests::Cluster;
use tests::cluster::wait_for;
use tests::fault::{Call, Fate, Faults};
use tests::history::{History, kind};
use tests::operator::{Operator, Scene, deployment, wait_status};

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
    let cluster = Cluster::control_plane()
        .with_kinds()
        .with_fake_nodes(1)
        .await?;
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

/// A namespace with an operator of its own, whose caches can be kept behind.
struct Blinkered {
    client: Client,
    namespace: &'static str,
    operator: Operator,
}

impl Blinkered {
    async fn start(cluster: &Cluster, namespace: &'static str) -> anyhow::Result<Self> {
        let client = cluster.client();
        let object = serde_json::from_value(json!({"metadata": {"name": namespace}}))?;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        namespaces.create(&PostParams::default(), &object).await?;
        let operator = Operator::start(cluster, Some(namespace), Faults::none()).await?;
        let blinkered = Self {
            client,
            namespace,
            operator,
        };
        let two = deployment("llava", json!({"replicas": 2}))?;
        let deployments = blinkered.api::<LlavaDeployment>();
        deployments.create(&PostParams::default(), &two).await?;
        blinkered.reach(2).await?;
        Ok(blinkered)
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), self.namespace)
    }

    async fn reach(&self, replicas: i32) -> anyhow::Result<()> {
        let there = |status: &LlavaDeploymentStatus| {
            status.replicas == replicas
                && status.available_replicas == replicas
                && status.summary.as_deref() == Some("Ready")
        };
        wait_status(&self.client, self.namespace, "llava", there).await?;
        let workers = self.api::<LlavaWorker>();
        let all = async || {
            let found = workers.list(&ListParams::default()).await.ok()?;
            (i32::try_from(found.items.len()) == Ok(replicas)).then_some(())
        };
        wait_for("so many workers", SOON, all).await?;
        Ok(())
    }

    async fn scale(&self, replicas: i32) -> anyhow::Result<()> {
        let change = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        let deployments = self.api::<LlavaDeployment>();
        deployments
            .patch("llava", &PatchParams::default(), &change)
            .await?;
        Ok(())
    }

    /// Scales while the operator hears nothing of a kind. It hears again once it has done
    /// without, or has asked the API server itself what the watch should have told.
    async fn scale_blindly(&self, kind: &str, replicas: i32) -> anyhow::Result<()> {
        let faults = &self.operator.faults;
        let before = faults.calls().len();
        faults.hold(&[kind]);
        self.scale(replicas).await?;
        let object = format!("/{kind}/llava-");
        let asked = async || {
            let asks = |call: &Call| call.method == Method::GET && call.path.contains(&object);
            let asked = faults.calls().split_off(before).iter().any(asks);
            asked.then_some(())
        };
        tokio::select! {
            asked = wait_for("the operator to ask", SOON, asked) => asked?,
            reached = self.reach(replicas) => reached?,
        }
        faults.release();
        self.reach(replicas).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whichever_cache_is_behind_nothing_is_made_or_removed_twice() -> anyhow::Result<()> {
    let cluster = Cluster::control_plane().with_kinds().with_fake_nodes(2);
    let cluster = &cluster.await?;
    let kinds = [
        "pods",
        "llavaworkers",
        "leases",
        "roles",
        "rolebindings",
        "serviceaccounts",
        "services",
        "poddisruptionbudgets",
    ];
    let all = kinds.map(async |held| {
        let blinkered = Blinkered::start(cluster, held).await?;
        let made = [kind::<LlavaWorker>(), kind::<Pod>(), kind::<Lease>()];
        let history = History::record(&cluster.client(), held, &made).await?;
        blinkered.scale_blindly(held, 4).await?;
        blinkered.scale_blindly(held, 1).await?;
        let gone = async || {
            let pods = blinkered.api::<Pod>();
            let pods = pods.list(&ListParams::default()).await.ok()?;
            (pods.items.len() == 1).then_some(())
        };
        wait_for("the Pods to go", SOON, gone).await?;
        history.caught_up().await?;
        let sum = |kind: &str| {
            let lives = history.lives();
            let of_kind = lives.iter().filter(|(name, _)| name.starts_with(kind));
            of_kind.fold((0, 0), |sum, (_, life)| (sum.0 + life.0, sum.1 + life.1))
        };
        for kind in ["LlavaWorker/", "Pod/"] {
            anyhow::ensure!(sum(kind) == (2, 3), "{held} held: {:#?}", history.lives());
        }
        anyhow::Ok(())
    });
    try_join_all(all).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_watch_told_is_found_in_the_next_list() -> anyhow::Result<()> {
    let scene = Scene::start(1).await?;
    scene.serve("llava", json!({"replicas": 3})).await?;
    let names = workers(&scene).await?;
    let before = scene.pod_uids("llava").await?;
    let history = scene.record_pods().await?;
    scene.operator.faults.lose(&["pods", "llavaworkers"]);
    let at_once = DeleteParams::default().grace_period(0);
    scene.api::<Pod>().delete(&names[0], &at_once).await?;
    let worker = scene.api::<LlavaWorker>();
    worker.delete(&names[1], &DeleteParams::default()).await?;
    let gone = async || {
        let left = workers(&scene).await.ok()?.len();
        (left == 2 && scene.pod_uids("llava").await.ok()?.len() == 1).then_some(())
    };
    wait_for("both to be gone", SOON, gone).await?;

    scene.operator.faults.release();
    let successors = async || {
        let now = scene.pod_uids("llava").await.ok()?;
        let left = workers(&scene).await.ok()?.len();
        (left == 3 && now.len() == 3 && now.intersection(&before).count() == 1).then_some(())
    };
    wait_for("two successors", SOON, successors).await?;
    let three = |status: &LlavaDeploymentStatus| {
        status.available_replicas == 3 && status.summary.as_deref() == Some("Ready")
    };
    scene.wait("llava", three).await?;
    assert_eq!(history.created().await?, 2);
    Ok(())
}
