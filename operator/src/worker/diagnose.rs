//! What state a worker is in and why, from what can be observed of its Pod, in
//! the words of whoever knows the cause best: the scheduler, the kubelet, or the
//! worker's own last message.

mod container;

use crds::condition::reason;
use crds::worker::{Heartbeat, LlavaWorker, Phase};
use k8s_openapi::api::core::v1::{Pod, PodCondition};
use kube::ResourceExt;

use super::life::{Life, condition, owns};
use crate::heartbeat::Beat;

/// Longest message that a status carries, in characters.
const MESSAGE_LIMIT: usize = 1024;

/// A worker's state and its cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// Where the worker stands in its life.
    pub phase: Phase,
    /// Why, in one word.
    pub reason: String,
    /// Why, in plain words.
    pub message: String,
}

impl Diagnosis {
    fn new(phase: Phase, reason: &str, message: impl Into<String>) -> Self {
        let reason: String = reason
            .chars()
            .filter(|character| character.is_ascii_alphanumeric())
            .collect();
        let message: String = message.into();
        Self {
            phase,
            reason,
            message: message.trim().chars().take(MESSAGE_LIMIT).collect(),
        }
    }

    /// Whether no node had room: the one shortage that a departing worker can end.
    #[must_use]
    pub fn lacks_room(&self) -> bool {
        self.reason == reason::UNSCHEDULABLE && self.message.contains("Insufficient ")
    }
}

/// The worker's state and why.
#[must_use]
pub fn diagnose(
    worker: &LlavaWorker,
    life: Life,
    pod: Option<&Pod>,
    beat: Option<&Beat>,
) -> Diagnosis {
    let foreign = pod.is_some_and(|pod| !owns(worker, pod));
    let pod = pod.filter(|pod| owns(worker, pod));
    match (life, pod) {
        (Life::Leaving, _) => Diagnosis::new(
            Phase::Draining,
            reason::DRAINING,
            "finishes its answers and takes no new requests",
        ),
        (Life::Ended, Some(pod)) => ended(pod),
        (Life::Ended, None) => end_of(worker),
        (Life::Unseen, _) => {
            Diagnosis::new(Phase::Unready, reason::POD_MISSING, "the Pod is not seen")
        }
        (Life::Unborn, _) | (Life::Live, None) if foreign => Diagnosis::new(
            Phase::Pending,
            reason::NAME_TAKEN,
            format!(
                "a Pod named {} exists that does not belong to this worker; delete or rename it",
                worker.name_any()
            ),
        ),
        (Life::Unborn, _) | (Life::Live, None) => Diagnosis::new(
            Phase::Pending,
            reason::POD_MISSING,
            "the Pod is about to be created",
        ),
        (Life::Live, Some(pod)) => live(pod, beat),
    }
}

/// A Pod that is gone leaves what was said of its end, or that it was taken away.
fn end_of(worker: &LlavaWorker) -> Diagnosis {
    let status = worker.status.clone().unwrap_or_default();
    match status.reason {
        Some(word) if status.phase == Phase::Failed => {
            Diagnosis::new(Phase::Failed, &word, status.message.unwrap_or_default())
        }
        _ => pod_deleted(),
    }
}

/// The end of a worker whose Pod somebody took away.
#[must_use]
pub fn pod_deleted() -> Diagnosis {
    Diagnosis::new(
        Phase::Failed,
        reason::POD_DELETED,
        "the Pod was deleted by someone other than the operator",
    )
}

fn ended(pod: &Pod) -> Diagnosis {
    let status = pod.status.as_ref();
    let said = status.and_then(|status| status.message.clone());
    match status.and_then(|status| status.reason.as_deref()) {
        // `OutOfnvidia.com/gpu` is no word for a condition.
        Some(word) if word.starts_with("OutOf") && word.contains(['.', '/']) => Diagnosis::new(
            Phase::Failed,
            "OutOfDevices",
            said.unwrap_or_else(|| word.to_owned()),
        ),
        Some(word) => Diagnosis::new(Phase::Failed, word, said.unwrap_or_else(|| word.to_owned())),
        None => match container::of(pod).and_then(container::last_end) {
            Some(end) if end.exit_code == 0 => Diagnosis::new(
                Phase::Failed,
                reason::COMPLETED,
                "the worker ended by itself",
            ),
            Some(end) => Diagnosis::new(
                Phase::Failed,
                container::end_reason(end),
                container::describe(end),
            ),
            None => Diagnosis::new(
                Phase::Failed,
                "Failed",
                said.unwrap_or_else(|| "the Pod failed and its node says nothing more".to_owned()),
            ),
        },
    }
}

fn live(pod: &Pod, beat: Option<&Beat>) -> Diagnosis {
    let scheduled = condition(pod, "PodScheduled");
    let on_a_node = pod
        .spec
        .as_ref()
        .is_some_and(|spec| spec.node_name.as_ref().is_some_and(|node| !node.is_empty()));
    if !on_a_node {
        return match scheduled {
            Some(no) if no.status == "False" => unscheduled(no),
            _ => Diagnosis::new(
                Phase::Pending,
                reason::UNSCHEDULED,
                "waits for the scheduler",
            ),
        };
    }
    let ready = condition(pod, "Ready").is_some_and(|ready| ready.status == "True");
    if ready {
        return match beat.and_then(Beat::heartbeat) {
            Some(Heartbeat::Stale) => Diagnosis::new(
                Phase::Ready,
                reason::HEARTBEAT_LOST,
                "the Pod is ready, but its Lease is no longer renewed",
            ),
            _ => Diagnosis::new(Phase::Ready, reason::READY, "answers requests"),
        };
    }
    let Some(container) = container::of(pod) else {
        return Diagnosis::new(Phase::Pending, reason::STARTING, "the node sets the Pod up");
    };
    container::diagnose(container, beat)
}

/// The scheduler's words; those about volumes have a reason of their own.
fn unscheduled(condition: &PodCondition) -> Diagnosis {
    let said = condition.message.clone().unwrap_or_default();
    let word = if said.contains("persistentvolumeclaim \"") && said.contains("not found") {
        reason::VOLUME_CLAIM_MISSING
    } else if said.contains("unbound immediate PersistentVolumeClaims") {
        reason::VOLUME_CLAIM_PENDING
    } else {
        condition.reason.as_deref().unwrap_or(reason::UNSCHEDULABLE)
    };
    Diagnosis::new(Phase::Pending, word, said)
}

#[cfg(test)]
mod tests;
