//! What others decide holds: a quota that says no, an eviction that has to wait, a
//! change that is taken back, and what they write on the operator's objects.

use std::time::Duration;

use crds::name::child_name;
use crds::{LlavaDeployment, LlavaDeploymentStatus, LlavaWorker};
use futures::future::join_all;
use http::Method;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Pod, ResourceQuota, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{EvictParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;
use tests::cluster::wait_for;
use tests::operator::Scene;

const SOON: Duration = Duration::from_secs(40);

fn ready(replicas: i32) -> impl Fn(&LlavaDeploymentStatus) -> bool {
    move |status| {
        status.available_replicas == replicas
            && status.replicas == replicas
            && status.updated_replicas == replicas
            && status.summary.as_deref() == Some("Ready")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_that_says_no_costs_few_calls_and_is_told_until_it_is_raised() -> anyhow::Result<()>
{
    let scene = Scene::start(1).await?;
    let quotas: Api<ResourceQuota> = scene.api();
    let quota = |workers: u32| {
        serde_json::from_value::<ResourceQuota>(json!({
            "metadata": {"name": "few"},
            "spec": {"hard": {"count/llavaworkers.llava.dev": workers.to_string()}},
        }))
    };
    quotas.create(&PostParams::default(), &quota(3)?).await?;
    let counted = async || {
        let used = quotas.get("few").await.ok()?.status?.used?;
        (!used.is_empty()).then_some(())
    };
    wait_for("the quota to count", SOON, counted).await?;
    let begin = shell::clock::now();
    scene.create("llava", json!({"replicas": 20})).await?;
    let refused = |status: &LlavaDeploymentStatus| {
        let mut conditions = status.conditions.iter();
        let told = conditions.any(|one| {
            one.type_ == "Degraded" && one.status == "True" && one.message.contains("few")
        });
        told && status.available_replicas == 3 && status.summary.as_deref() == Some("CreateRefused")
    };
    scene.wait("llava", refused).await?;
    let attempts = || {
        let writes = scene.operator.faults.writes();
        let made = |call: &&tests::fault::Call| {
            call.method == Method::POST && call.path.ends_with("/llavaworkers")
        };
        writes.iter().filter(made).count()
    };
    // 1 and 2 are taken, 4 are refused together; each try after that is a single one, and
    // they come at doubling intervals: 0.5 s, 1 s, 2 s and so on.
    let attempts = attempts();
    let took = shell::clock::now().saturating_duration_since(begin);
    let tries = (took.as_millis() / 500 + 1).ilog2().max(4) as usize;
    assert!(attempts <= 3 + 4 + tries, "{attempts} attempts in {took:?}");
    let told = async || {
        let events = scene.events("LlavaDeployment").await.ok()?;
        let told = events.iter().filter(|word| *word == "Degraded");
        (told.count() == 1).then_some(())
    };
    wait_for("one Event", SOON, told).await?;

    let raise = PatchParams::default();
    let raised = quota(20)?;
    quotas
        .patch("few", &raise, &Patch::Merge(json!({"spec": raised.spec})))
        .await?;
    scene.wait("llava", ready(20)).await?;
    Ok(())
}

/// A client that takes no for an answer; the usual one asks again for minutes.
async fn impatient(scene: &Scene) -> anyhow::Result<Client> {
    let read = Kubeconfig::read_from(scene.cluster.kubeconfig())?;
    let how = KubeConfigOptions::default();
    let mut config = Config::from_custom_kubeconfig(read, &how).await?;
    config.default_retry = false;
    config.proxy_url = None;
    Ok(Client::try_from(config)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_workers_one_may_be_evicted_at_a_time() -> anyhow::Result<()> {
    let scene = Scene::start(1).await?;
    scene.serve("llava", json!({"replicas": 2})).await?;
    let budgets: Api<PodDisruptionBudget> = scene.api();
    let counted = async || {
        let status = budgets.get(&child_name("llava")).await.ok()?.status?;
        (status.disruptions_allowed == 1).then_some(())
    };
    wait_for("the budget to allow one", SOON, counted).await?;
    let pods: Api<Pod> = Api::default_namespaced(impatient(&scene).await?);
    let before = scene.pods("llava").await?;
    let names: Vec<_> = before.iter().map(ResourceExt::name_any).collect();
    let how = EvictParams::default();
    // No successor comes meanwhile.
    scene.cluster.kubectl(&["cordon", "fake-0"]).await?;
    let evictions = join_all(names.iter().map(|name| pods.evict(name, &how))).await;
    let refused: Vec<_> = evictions
        .iter()
        .filter_map(|one| one.as_ref().err())
        .collect();
    assert!(
        matches!(refused[..], [kube::Error::Api(status)] if status.code == 429),
        "{evictions:?}"
    );

    // The drain goes on when the successor answers.
    scene.cluster.kubectl(&["uncordon", "fake-0"]).await?;
    let rest = &names[usize::from(evictions[0].is_ok())];
    let gone = async || pods.evict(rest, &how).await.ok().map(|_| ());
    wait_for("the other one's turn", SOON, gone).await?;
    let successors = async || {
        let now = scene.pods("llava").await.ok()?;
        let stayed = |pod: &Pod| before.iter().any(|old| old.uid() == pod.uid());
        (now.len() == 2 && !now.iter().any(stayed)).then_some(())
    };
    wait_for("two successors", SOON, successors).await?;
    scene.wait("llava", ready(2)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_fails_and_is_taken_back_costs_no_worker_that_answers() -> anyhow::Result<()>
{
    let scene = Scene::start(1).await?;
    scene.serve("llava", json!({"replicas": 2})).await?;
    let before = scene.pod_uids("llava").await?;
    let spoil = |fault: Option<&str>| json!({"annotations": {"fake.llava.dev/fault": fault}});
    scene
        .change("llava", spoil(Some("image-pull-error")))
        .await?;
    let stuck = |status: &LlavaDeploymentStatus| {
        status.updated_replicas > 0 && status.summary.as_deref() == Some("ImagePullBackOff")
    };
    let told = scene.wait("llava", stuck).await?;
    assert_eq!(told.available_replicas, 2);
    assert_ne!(told.current_revision, told.update_revision);

    scene.change("llava", spoil(None)).await?;
    let back = scene.wait("llava", ready(2)).await?;
    assert_eq!(back.update_revision, told.current_revision);
    let only = async || (scene.pod_uids("llava").await.ok()? == before).then_some(());
    wait_for("the first two workers alone", SOON, only).await?;
    Ok(())
}

/// Writes a label of somebody else's on all objects of a kind, and returns their names.
async fn mark<K>(scene: &Scene) -> anyhow::Result<Vec<String>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    let api: Api<K> = scene.api();
    let mark = Patch::Merge(json!({"metadata": {"labels": {"team": "vision"}}}));
    let of_ours = ListParams::default().labels("llava.dev/deployment=llava");
    let mut names = Vec::new();
    for object in api.list(&of_ours).await? {
        let name = object.name_any();
        api.patch(&name, &PatchParams::default(), &mark).await?;
        names.push(name);
    }
    anyhow::ensure!(!names.is_empty(), "no {}", K::kind(&()));
    Ok(names)
}

/// Whether they still bear it.
async fn are_marked<K>(scene: &Scene, names: &[String]) -> anyhow::Result<()>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + std::fmt::Debug + DeserializeOwned,
{
    let api: Api<K> = scene.api();
    for name in names {
        let object = api.get(name).await?;
        let label = object.labels().get("team").map(String::as_str);
        anyhow::ensure!(label == Some("vision"), "{object:#?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_write_on_its_objects_stays() -> anyhow::Result<()> {
    let scene = Scene::start(1).await?;
    scene.serve("llava", json!({"replicas": 2})).await?;
    let roles = mark::<Role>(&scene).await?;
    let bindings = mark::<RoleBinding>(&scene).await?;
    let accounts = mark::<ServiceAccount>(&scene).await?;
    let services = mark::<Service>(&scene).await?;
    let budgets = mark::<PodDisruptionBudget>(&scene).await?;
    let workers = mark::<LlavaWorker>(&scene).await?;
    let pods = mark::<Pod>(&scene).await?;
    let deployments: Api<LlavaDeployment> = scene.api();
    let note = Patch::Merge(json!({"metadata": {"annotations": {"team": "vision"}}}));
    deployments
        .patch("llava", &PatchParams::default(), &note)
        .await?;

    // Role and budget change with the number, and every status is written anew.
    scene.change("llava", json!({"replicas": 3})).await?;
    scene.wait("llava", ready(3)).await?;
    are_marked::<Role>(&scene, &roles).await?;
    are_marked::<RoleBinding>(&scene, &bindings).await?;
    are_marked::<ServiceAccount>(&scene, &accounts).await?;
    are_marked::<Service>(&scene, &services).await?;
    are_marked::<PodDisruptionBudget>(&scene, &budgets).await?;
    are_marked::<LlavaWorker>(&scene, &workers).await?;
    are_marked::<Pod>(&scene, &pods).await?;
    let deployment = deployments.get("llava").await?;
    assert_eq!(deployment.annotations()["team"], "vision");
    let role = scene.api::<Role>().get(&roles[0]).await?;
    let rules = role.rules.unwrap_or_default();
    let leases = rules[0].resource_names.as_ref().map_or(0, Vec::len);
    assert_eq!(leases, 3, "the rules are the operator's");
    Ok(())
}
