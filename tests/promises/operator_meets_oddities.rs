//! What should not be there, or should but is not, neither stops nor misleads the operator.

use std::time::Duration;

use crds::condition::reason::NAME_TAKEN;
use crds::definition::definitions;
use crds::name::{WORKER, label};
use crds::{LlavaDeployment, LlavaDeploymentStatus, LlavaWorker};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps,
};
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use llava_operator::revision::worker_name;
use serde_json::json;
use tests::Cluster;
use tests::cluster::{install_kinds, wait_for};
use tests::fault::Faults;
use tests::history::kind;
use tests::operator::{Operator, Scene, deployment, wait_status};

const SOON: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_pod_is_replaced_and_a_foreign_one_is_left_alone() -> anyhow::Result<()> {
    let scene = Scene::start(2).await?;
    let pods: Api<Pod> = scene.api();
    let foreign = serde_json::from_value(json!({
        "metadata": {"name": "stranger", "labels": {label::NAME: WORKER, label::DEPLOYMENT: "llava", label::WORKER: "llava-x-0"}},
        "spec": {"containers": [{"name": "worker", "image": "stranger"}]},
    }))?;
    pods.create(&PostParams::default(), &foreign).await?;
    let spec = json!({"replicas": 2, "annotations": {"fake.llava.dev/fault": "stuck-terminating"}});
    scene.serve("llava", spec).await?;

    let all = pods.list(&ListParams::default()).await?;
    let victim = all
        .iter()
        .map(ResourceExt::name_any)
        .find(|name| name.starts_with("llava-"));
    let victim = victim.unwrap_or_default();
    pods.delete(&victim, &DeleteParams::default()).await?;
    let replaced = async || {
        let all = pods.list(&ListParams::default()).await.ok()?;
        let live = all.iter().filter(|pod| {
            pod.name_any().starts_with("llava-") && pod.metadata.deletion_timestamp.is_none()
        });
        (live.count() == 2).then_some(())
    };
    wait_for("the stuck pod to be replaced", SOON, replaced).await?;
    let status = scene
        .wait("llava", |status| status.available_replicas == 2)
        .await?;
    assert_eq!(
        status.replicas, 2,
        "a pod that is terminating counts for nothing"
    );
    assert!(
        pods.get("stranger")
            .await?
            .metadata
            .deletion_timestamp
            .is_none()
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_with_a_workers_name_is_told_and_missed_when_it_goes() -> anyhow::Result<()> {
    let scene = Scene::start(1).await?;
    scene.create("llava", json!({"replicas": 0})).await?;
    let status = scene
        .wait("llava", |status| status.update_revision.is_some())
        .await?;
    let name = worker_name("llava", &status.update_revision.unwrap_or_default(), 0);
    let pods: Api<Pod> = scene.api();
    let stranger = serde_json::from_value(json!({
        "metadata": {"name": name}, "spec": {"containers": [{"name": "main", "image": "stranger"}]},
    }))?;
    let stranger = pods.create(&PostParams::default(), &stranger).await?;

    scene.change("llava", json!({"replicas": 1})).await?;
    let taken = |status: &LlavaDeploymentStatus| status.summary.as_deref() == Some(NAME_TAKEN);
    let status = scene.wait("llava", taken).await?;
    let words = format!("Pod default/{name} exists and does not belong to its LlavaWorker");
    assert!(
        status
            .conditions
            .iter()
            .any(|condition| condition.message.contains(&words)),
        "{status:#?}"
    );
    assert_eq!(
        pods.get(&name).await?.uid(),
        stranger.uid(),
        "it is left alone"
    );

    let at_once = DeleteParams::default().grace_period(0);
    pods.delete(&name, &at_once).await?;
    scene
        .wait("llava", |status| status.available_replicas == 1)
        .await?;
    Ok(())
}

/// The kind as an older release may have had it: anything goes.
fn lax(mut definition: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut definition.spec.versions {
        let anything = JSONSchemaProps {
            type_: Some("object".into()),
            x_kubernetes_preserve_unknown_fields: Some(true),
            ..JSONSchemaProps::default()
        };
        if let Some(schema) = &mut version.schema {
            schema.open_api_v3_schema = Some(anything);
        }
    }
    definition
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_cannot_be_read_stalls_no_other() -> anyhow::Result<()> {
    let cluster = Cluster::control_plane().with_fake_nodes(1).await?;
    let client = cluster.client();
    let kinds: Api<CustomResourceDefinition> = Api::all(client.clone());
    let [deployments, _] = definitions();
    kinds
        .create(&PostParams::default(), &lax(deployments))
        .await?;
    let anything: Api<DynamicObject> =
        Api::default_namespaced_with(client.clone(), &kind::<LlavaDeployment>());
    let broken: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "llava.dev/v1alpha1", "kind": "LlavaDeployment",
        "metadata": {"name": "broken"}, "spec": {"model": 7},
    }))?;
    let create = async || anything.create(&PostParams::default(), &broken).await.ok();
    wait_for("the lax kind to be served", SOON, create).await?;
    kinds
        .delete("llavaworkers.llava.dev", &DeleteParams::default())
        .await
        .ok();
    install_kinds(&client).await?;
    let _operator = Operator::start(&cluster, None, Faults::none()).await?;
    let good: Api<LlavaDeployment> = Api::default_namespaced(client.clone());
    let create = async || {
        good.create(
            &PostParams::default(),
            &deployment("llava", json!({"replicas": 1})).ok()?,
        )
        .await
        .ok()
    };
    wait_for("the kind to be served", SOON, create).await?;
    wait_status(&client, "default", "llava", |status| {
        status.available_replicas == 1
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_cannot_be_read_counts_as_its_pod_does() -> anyhow::Result<()> {
    let scene = Scene::start(1).await?;
    scene.serve("llava", json!({"replicas": 2})).await?;
    let kinds: Api<CustomResourceDefinition> = Api::all(scene.cluster.client());
    let [_, workers] = definitions();
    let (name, how) = (workers.name_any(), PatchParams::apply("tests").force());
    kinds
        .patch(&name, &how, &Patch::Apply(lax(workers)))
        .await?;
    let victim = scene.pods("llava").await?.remove(0);
    let name = victim.name_any();
    let anything: Api<DynamicObject> =
        Api::default_namespaced_with(scene.cluster.client(), &kind::<LlavaWorker>());
    let broken = Patch::Merge(json!({"spec": {"template": 7}}));
    let spoil = async || {
        let how = PatchParams::default();
        anything.patch(&name, &how, &broken).await.ok()
    };
    wait_for("the kind to take anything", SOON, spoil).await?;

    // Its Pod answers, so that one more makes three.
    let history = scene.record_pods().await?;
    scene.change("llava", json!({"replicas": 3})).await?;
    let three =
        |status: &LlavaDeploymentStatus| status.available_replicas == 3 && status.replicas == 3;
    scene.wait("llava", three).await?;
    let pods: Api<Pod> = scene.api();
    assert_eq!(pods.get(&name).await?.uid(), victim.uid());
    assert_eq!(history.created().await?, 1);

    let fault = json!({"metadata": {"annotations": {"fake.llava.dev/fault": "failed"}}});
    pods.patch(&name, &PatchParams::default(), &Patch::Merge(fault))
        .await?;
    let gone = async || anything.get_opt(&name).await.ok()?.is_none().then_some(());
    wait_for("it to go with its Pod", SOON, gone).await?;
    scene.wait("llava", three).await?;
    assert_eq!(history.created().await?, 2);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_goes_takes_its_workers_and_stalls_no_other() -> anyhow::Result<()> {
    let scene = Scene::start(2).await?;
    let client = scene.cluster.client();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    for name in ["going", "staying"] {
        let namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        namespaces
            .create(&PostParams::default(), &namespace)
            .await?;
        let deployments: Api<LlavaDeployment> = Api::namespaced(client.clone(), name);
        deployments
            .create(
                &PostParams::default(),
                &deployment("llava", json!({"replicas": 2}))?,
            )
            .await?;
        wait_status(&client, name, "llava", |status| {
            status.available_replicas == 2
        })
        .await?;
    }
    namespaces.delete("going", &DeleteParams::default()).await?;
    let gone = async || {
        namespaces
            .get_opt("going")
            .await
            .ok()?
            .is_none()
            .then_some(())
    };
    wait_for("the namespace to be gone", SOON, gone).await?;
    let deployments: Api<LlavaDeployment> = Api::namespaced(client.clone(), "staying");
    let change = Patch::Merge(json!({"spec": {"replicas": 3}}));
    deployments
        .patch("llava", &PatchParams::default(), &change)
        .await?;
    wait_status(&client, "staying", "llava", |status| {
        status.available_replicas == 3
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_status_is_found_again_and_changes_nothing() -> anyhow::Result<()> {
    let scene = Scene::start(1).await?;
    let pods: Api<Pod> = scene.api();
    scene.create("llava", json!({"replicas": 2})).await?;
    let two = |status: &LlavaDeploymentStatus| {
        status.available_replicas == 2 && status.summary.as_deref() == Some("Ready")
    };
    let before = scene.wait("llava", two).await?;
    let uids = async || -> anyhow::Result<Vec<Option<String>>> {
        Ok(pods
            .list(&ListParams::default())
            .await?
            .iter()
            .map(ResourceExt::uid)
            .collect())
    };
    let pods_before = uids().await?;
    let nothing = Patch::Merge(json!({"status": null}));
    scene
        .api::<LlavaDeployment>()
        .patch_status("llava", &PatchParams::default(), &nothing)
        .await?;
    let after = scene.wait("llava", two).await?;
    assert_eq!(
        (before.selector, before.summary, before.current_revision),
        (after.selector, after.summary, after.current_revision)
    );
    assert_eq!(pods_before, uids().await?);
    Ok(())
}
