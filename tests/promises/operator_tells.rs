//! Whatever keeps workers from coming up, both kinds' statuses say it, in the
//! words of whoever knows, and each Event is told once.

use std::collections::BTreeMap;
use std::time::Duration;

use crds::{LlavaDeploymentStatus, LlavaWorker};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tests::cluster::wait_for;
use tests::operator::Scene;

const SOON: Duration = Duration::from_secs(20);
/// From a node's word to the deployment's.
const TRUTH: Duration = Duration::from_secs(2);

/// The best of so many counts: a busy machine keeps any single one waiting.
const ROUNDS: usize = 4;

/// A deployment that never comes up, and what has to be said of it.
struct Trouble {
    name: &'static str,
    spec: Value,
    reason: &'static str,
    words: &'static str,
}

fn troubles() -> Vec<Trouble> {
    let claim = |name: &str| json!({"model": {"source": {"persistentVolumeClaim": {"claimName": name}}}, "replicas": 1});
    let fault =
        |fault: &str| json!({"annotations": {"fake.llava.dev/fault": fault}, "replicas": 1});
    let trouble = |name, spec, reason, words| Trouble {
        name,
        spec,
        reason,
        words,
    };
    vec![
        trouble("claim", claim("nowhere"), "VolumeClaimMissing", "nowhere"),
        trouble(
            "class",
            claim("slow"),
            "StorageClassMissing",
            "no-such-class",
        ),
        trouble(
            "gpus",
            json!({"accelerator": {"count": 9}, "replicas": 1}),
            "Unschedulable",
            "Insufficient nvidia.com/gpu",
        ),
        trouble(
            "image",
            fault("image-pull-error"),
            "ImagePullBackOff",
            "pulling image",
        ),
        trouble(
            "memory",
            fault("oom-killed"),
            "OOMKilled",
            "raise resources.limits.memory",
        ),
    ]
}

fn says(status: &LlavaDeploymentStatus, reason: &str, words: &str) -> bool {
    let mut conditions = status.conditions.iter();
    let degraded = conditions
        .any(|one| one.type_ == "Degraded" && one.status == "True" && one.message.contains(words));
    status.summary.as_deref() == Some(reason) && degraded
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_cause_reaches_the_worker_and_its_deployment_in_plain_words() -> anyhow::Result<()> {
    let scene = Scene::start(1).await?;
    let claims: Api<PersistentVolumeClaim> = scene.api();
    let slow = serde_json::from_value(json!({
        "metadata": {"name": "slow"},
        "spec": {
            "storageClassName": "no-such-class", "accessModes": ["ReadOnlyMany"],
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }))?;
    claims.create(&PostParams::default(), &slow).await?;
    for trouble in troubles() {
        scene.create(trouble.name, trouble.spec).await?;
    }
    for Trouble {
        name,
        reason,
        words,
        ..
    } in troubles()
    {
        scene
            .wait(name, |status| says(status, reason, words))
            .await?;
        let workers: Api<LlavaWorker> = scene.api();
        let of = format!("llava.dev/deployment={name}");
        let workers = workers.list(&ListParams::default().labels(&of)).await?;
        for worker in workers {
            let status = worker.status.unwrap_or_default();
            assert_eq!(status.reason.as_deref(), Some(reason));
            assert!(status.message.unwrap_or_default().contains(words));
        }
    }
    let told = async || {
        let told = scene.events("LlavaWorker").await.ok()?;
        let once = |trouble: &Trouble| told.iter().filter(|word| *word == trouble.reason).count();
        troubles().iter().all(|one| once(one) == 1).then_some(())
    };
    wait_for("one Event for each trouble", SOON, told).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_secret_is_named_by_worker_and_deployment() -> anyhow::Result<()> {
    let scene = Scene::start(1).await?;
    let spec = json!({
        "model": {"source": {"huggingFace": {"repo": "a/b", "tokenSecretRef": {"name": "hub", "key": "token"}}}},
        "annotations": {"fake.llava.dev/fault": "image-pull-error"}, "replicas": 1,
    });
    scene.create("llava", spec).await?;
    let pulling = |status: &LlavaDeploymentStatus| says(status, "ImagePullBackOff", "");
    scene.wait("llava", pulling).await?;
    let pod = scene.pods("llava").await?.remove(0).name_any();
    // What kubelet says of a Secret that it cannot find; fake nodes have no kubelet.
    let waiting =
        json!({"reason": "CreateContainerConfigError", "message": "secret \"hub\" not found"});
    let status = json!({"status": {"containerStatuses": [{
        "name": "worker", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": {"waiting": waiting},
    }]}});
    let pods: Api<Pod> = scene.api();
    pods.patch_status(&pod, &PatchParams::default(), &Patch::Merge(status))
        .await?;
    let missing =
        |status: &LlavaDeploymentStatus| says(status, "SecretMissing", "secret \"hub\" not found");
    scene.wait("llava", missing).await?;
    Ok(())
}

/// What a node says of a worker's container, and the reason that follows.
fn node_words() -> Vec<(Value, &'static str)> {
    let waiting = |word: &str, said: &str| json!({"waiting": {"reason": word, "message": said}});
    let ended = json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}});
    vec![
        (
            waiting("CreateContainerConfigError", "secret \"hub\" not found"),
            "SecretMissing",
        ),
        (ended, "OOMKilled"),
        (
            waiting("ErrImagePull", "no such host registry.example"),
            "ErrImagePull",
        ),
        (
            waiting("CreateContainerError", "no space left on device"),
            "CreateContainerError",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cause_reaches_the_deployment_within_two_seconds_of_the_nodes_word() -> anyhow::Result<()>
{
    let scene = Scene::start(1).await?;
    let spec = json!({"annotations": {"fake.llava.dev/fault": "image-pull-error"}, "replicas": 1});
    scene.create("llava", spec).await?;
    let pulling = |status: &LlavaDeploymentStatus| says(status, "ImagePullBackOff", "");
    scene.wait("llava", pulling).await?;
    let pod = scene.pods("llava").await?.remove(0).name_any();
    let pods: Api<Pod> = scene.api();
    let mut best = BTreeMap::new();
    for _ in 0..ROUNDS {
        for (state, reason) in node_words() {
            let status = json!({"status": {"containerStatuses": [{
                "name": "worker", "image": "", "imageID": "", "ready": false, "restartCount": 1, "state": state,
            }]}});
            let patch = Patch::Merge(status);
            pods.patch_status(&pod, &PatchParams::default(), &patch)
                .await?;
            let begin = shell::clock::now();
            let told = |status: &LlavaDeploymentStatus| says(status, reason, "");
            scene.wait("llava", told).await?;
            let took = shell::clock::now().saturating_duration_since(begin);
            let best = best.entry(reason).or_insert(took);
            *best = took.min(*best);
        }
        if best.values().all(|took| *took < TRUTH) {
            return Ok(());
        }
    }
    anyhow::bail!("at best after {best:?}")
}
