//! Where a worker stands between its first Pod and its end.

use crds::worker::{LlavaWorker, Phase};
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use kube::ResourceExt;

/// How a worker's Pod stands to its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// The Pod does not exist yet.
    Unborn,
    /// The Pod counts as a replica.
    Live,
    /// The Pod was there and is not seen now. Caches of two kinds may be apart, so that
    /// this is no end until the API server itself was asked and the status says so.
    Unseen,
    /// The Pod is terminating, or is about to be.
    Leaving,
    /// The Pod ended for good.
    Ended,
}

/// Whether this is the worker's own Pod.
#[must_use]
pub fn owns(worker: &LlavaWorker, pod: &Pod) -> bool {
    let Some(uid) = &worker.metadata.uid else {
        return false;
    };
    pod.owner_references()
        .iter()
        .any(|owner| owner.controller == Some(true) && owner.uid == *uid)
}

/// Where a worker stands between its first Pod and its end. `born` is the UID of the
/// Pod that it is known to have had, whatever its status says.
#[must_use]
pub fn life(worker: &LlavaWorker, pod: Option<&Pod>, born: Option<&str>) -> Life {
    if worker.metadata.deletion_timestamp.is_some() {
        return Life::Leaving;
    }
    let Some(pod) = pod.filter(|pod| owns(worker, pod)) else {
        return match &worker.status {
            Some(status) if status.phase == Phase::Failed => Life::Ended,
            Some(status) if status.pod_uid.is_some() => Life::Unseen,
            _ if born.is_some() => Life::Unseen,
            _ => Life::Unborn,
        };
    };
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Failed" | "Succeeded")) {
        Life::Ended
    } else if pod.metadata.deletion_timestamp.is_some() {
        Life::Leaving
    } else {
        Life::Live
    }
}

/// Whether the worker's Pod runs, or will, and was not told to end.
#[must_use]
pub fn pod_lives(worker: &LlavaWorker, pod: Option<&Pod>) -> bool {
    pod.filter(|pod| owns(worker, pod)).is_some_and(|pod| {
        let phase = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref());
        pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Failed" | "Succeeded"))
    })
}

/// Whether the Pod is ready and stays.
#[must_use]
pub fn is_available(worker: &LlavaWorker, pod: Option<&Pod>) -> bool {
    life(worker, pod, None) == Life::Live
        && pod
            .is_some_and(|pod| condition(pod, "Ready").is_some_and(|ready| ready.status == "True"))
}

/// A condition of the Pod.
pub(super) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind)
}
