//! A rollout can be held, and one that stands still says why.

use std::collections::BTreeSet;
use std::time::Duration;

use crds::LlavaDeploymentStatus;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use tests::cluster::wait_for;
use tests::operator::{Scene, WORKER_IMAGE};

const SOON: Duration = Duration::from_secs(40);

fn progressing<'a>(
    status: &'a LlavaDeploymentStatus,
    truth: &str,
    reason: &str,
) -> Option<&'a str> {
    let mut conditions = status.conditions.iter();
    let found = conditions
        .find(|one| one.type_ == "Progressing" && one.status == truth && one.reason == reason)?;
    Some(&found.message)
}

/// The images that the workers run, each once.
fn images(pods: &[Pod]) -> BTreeSet<String> {
    let containers = pods
        .iter()
        .filter_map(|pod| pod.spec.as_ref()?.containers.first());
    containers
        .filter_map(|container| container.image.clone())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_rollout_changes_nothing_but_the_number_until_it_goes_on() -> anyhow::Result<()> {
    let scene = Scene::start(2).await?;
    scene.serve("llava", json!({"replicas": 2})).await?;
    let held = json!({"image": "llava-worker:next", "rollout": {"paused": true}});
    scene.change("llava", held).await?;
    let said = scene
        .wait("llava", |status| {
            progressing(status, "Unknown", "Paused").is_some()
        })
        .await?;
    let message = progressing(&said, "Unknown", "Paused").unwrap_or_default();
    assert!(message.contains("spec.rollout.paused"), "{message}");
    scene.change("llava", json!({"replicas": 3})).await?;
    let grown = scene
        .wait("llava", |status| status.available_replicas == 3)
        .await?;
    assert_eq!(grown.updated_replicas, 0);
    let old = BTreeSet::from([WORKER_IMAGE.to_owned()]);
    assert_eq!(images(&scene.pods("llava").await?), old);

    scene
        .change("llava", json!({"rollout": {"paused": false}}))
        .await?;
    let done = |status: &LlavaDeploymentStatus| {
        status.updated_replicas == 3
            && status.replicas == 3
            && progressing(status, "True", "Complete").is_some()
    };
    scene.wait("llava", done).await?;
    for word in ["RolloutPaused", "RolloutStarted", "RolloutComplete"] {
        // An Event follows the status: nothing waits for it.
        let heard = async || {
            let events = scene.events("LlavaDeployment").await.ok()?;
            events.iter().any(|event| event == word).then_some(())
        };
        wait_for(word, SOON, heard).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_past_its_deadline_names_the_worst_workers_cause_and_heals() -> anyhow::Result<()>
{
    let scene = Scene::start(2).await?;
    let spec = json!({"replicas": 2, "rollout": {"progressDeadline": "2s"}});
    scene.serve("llava", spec).await?;
    let spoiled = json!({"annotations": {"fake.llava.dev/fault": "image-pull-error"}});
    scene.change("llava", spoiled).await?;
    let late = |status: &LlavaDeploymentStatus| {
        progressing(status, "False", "ProgressDeadlineExceeded")
            .is_some_and(|message| message.contains("pulling image"))
    };
    let said = scene.wait("llava", late).await?;
    let message = progressing(&said, "False", "ProgressDeadlineExceeded").unwrap_or_default();
    assert!(message.contains("worker llava-"), "{message}");
    assert_eq!(said.available_replicas, 2, "those that answer stay");

    let mended = json!({"annotations": {"fake.llava.dev/fault": null}});
    scene.change("llava", mended).await?;
    let done = |status: &LlavaDeploymentStatus| {
        status.updated_replicas == 2 && progressing(status, "True", "Complete").is_some()
    };
    scene.wait("llava", done).await?;
    Ok(())
}
