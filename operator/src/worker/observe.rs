//! What there is to know of one worker (reads the stores; asks the API server
//! only where a message of the scheduler leaves the cause open).

use std::sync::Arc;
use std::time::Duration;

use crds::condition::reason;
use crds::worker::{LlavaWorker, Phase};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;

use super::diagnose::{self, Diagnosis};
use super::life::{self, Life};
use crate::effects::{EffectError, Effects};
use crate::heartbeat::Beat;
use crate::key::Key;
use crate::now::Now;
use crate::world::World;

/// How long a Pod may take to start before its Events are read.
const MOUNT_PATIENCE: Duration = Duration::from_secs(2);

/// One worker and its surroundings at one instant.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The worker.
    pub worker: Arc<LlavaWorker>,
    /// Its namespace and name.
    pub key: Key,
    /// The Pod of its name, whoever it belongs to.
    pub pod: Option<Arc<Pod>>,
    /// The Lease of its name.
    pub lease: Option<Arc<Lease>>,
    /// The last heartbeat of the Pod.
    pub beat: Option<Beat>,
    /// UID of the Pod that it has had.
    pub born: Option<String>,
    /// Where the worker stands.
    pub life: Life,
    /// Its state and cause.
    pub diagnosis: Diagnosis,
}

/// Looks.
///
/// # Errors
/// When the API server has to be asked and does not answer.
pub async fn observe(
    worker: Arc<LlavaWorker>,
    world: &World,
    effects: &Effects,
) -> Result<Observed, EffectError> {
    let key = Key::of(&*worker);
    let pod = world
        .pods
        .get(&ObjectRef::new(&key.name).within(&key.namespace));
    let lease = world
        .leases
        .get(&ObjectRef::new(&key.name).within(&key.namespace));
    let beat = pod.as_ref().and_then(|pod| {
        world
            .heartbeats()
            .get(&key, &pod.uid().unwrap_or_default())
            .cloned()
    });
    let uid = worker.uid().unwrap_or_default();
    let born = {
        let mut births = world.births();
        if let Some(pod) = pod.as_ref().filter(|pod| life::owns(&worker, pod)) {
            births.saw(&uid, &pod.uid().unwrap_or_default());
        }
        births.of(&uid).map(str::to_owned)
    };
    let mut life = life::life(&worker, pod.as_deref(), born.as_deref());
    let mut diagnosis = diagnose::diagnose(&worker, life, pod.as_deref(), beat.as_ref());
    if life == Life::Unseen
        && effects
            .get::<Pod>(&key)
            .await?
            .is_none_or(|pod| !life::owns(&worker, &pod))
    {
        life = Life::Ended;
        diagnosis = diagnose::pod_deleted();
    }
    if let Some(cause) = deeper(&worker, pod.as_deref(), &diagnosis, &key, world, effects).await? {
        diagnosis = cause;
    }
    Ok(Observed {
        worker,
        key,
        pod,
        lease,
        beat,
        born,
        life,
        diagnosis,
    })
}

/// The cause behind a message that does not name it.
async fn deeper(
    worker: &LlavaWorker,
    pod: Option<&Pod>,
    diagnosis: &Diagnosis,
    key: &Key,
    world: &World,
    effects: &Effects,
) -> Result<Option<Diagnosis>, EffectError> {
    if diagnosis.reason == reason::VOLUME_CLAIM_PENDING {
        return volume_claim(worker, key, effects).await;
    }
    match pod {
        // Listing Events is dear, and most Pods start within a moment.
        Some(pod)
            if diagnosis.reason == reason::STARTING && on_its_node_for(pod) >= MOUNT_PATIENCE =>
        {
            Ok(mount(pod, key, world, effects).await)
        }
        _ => Ok(None),
    }
}

async fn volume_claim(
    worker: &LlavaWorker,
    key: &Key,
    effects: &Effects,
) -> Result<Option<Diagnosis>, EffectError> {
    let model = &worker.spec.template.model;
    let sources = std::iter::once(&model.source).chain(&model.base);
    for claim in sources.filter_map(|source| source.persistent_volume_claim.as_ref()) {
        let name = &claim.claim_name;
        let found: Option<PersistentVolumeClaim> =
            effects.get(&Key::new(&key.namespace, name)).await?;
        let Some(class) = found.and_then(|claim| claim.spec?.storage_class_name) else {
            continue;
        };
        // Without the right to read storage classes (one namespace only) the name has to do.
        let missing = matches!(effects.get_cluster::<StorageClass>(&class).await, Ok(None));
        let (word, message) = if missing {
            (
                reason::STORAGE_CLASS_MISSING,
                format!(
                    "PersistentVolumeClaim {name} asks for StorageClass {class}, which does not exist"
                ),
            )
        } else {
            (
                reason::VOLUME_CLAIM_PENDING,
                format!(
                    "PersistentVolumeClaim {name} has no volume yet; its StorageClass is {class}"
                ),
            )
        };
        return Ok(Some(Diagnosis {
            phase: Phase::Pending,
            reason: word.to_owned(),
            message,
        }));
    }
    Ok(None)
}

/// How long ago the scheduler chose a node, as far as two clocks agree.
fn on_its_node_for(pod: &Pod) -> Duration {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    let scheduled = conditions
        .and_then(|all| {
            all.iter()
                .find(|condition| condition.type_ == "PodScheduled")
        })
        .and_then(|condition| condition.last_transition_time.as_ref());
    scheduled.map_or(Duration::ZERO, |time| {
        Duration::try_from(Now::read().wall.duration_since(time.0)).unwrap_or_default()
    })
}

/// A Pod whose volumes cannot be mounted says so in Events alone.
async fn mount(pod: &Pod, key: &Key, world: &World, effects: &Effects) -> Option<Diagnosis> {
    let said = world.warnings.of(key, &pod.uid()?, effects).await?;
    let message = said.message;
    let missing = message.contains("secret \"") && message.contains("not found");
    let word = if said.reason == "FailedMount" && missing {
        reason::SECRET_MISSING.to_owned()
    } else {
        said.reason
    };
    Some(Diagnosis {
        phase: Phase::Pending,
        reason: word,
        message: message.chars().take(1024).collect(),
    })
}
