//! What state a worker is in and why, from what can be observed of its Pod, in
//! the words of whoever knows the cause best: the scheduler, the kubelet, or the
//! worker's own last message.

use crds::condition::reason;
use crds::name::WORKER_CONTAINER;
use crds::worker::{Heartbeat, LlavaWorker, Phase};
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod, PodCondition};
use kube::ResourceExt;
use protocol::load::Phase as Stage;

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

/// Where a worker stands between its first Pod and its end.
#[must_use]
pub fn life(worker: &LlavaWorker, pod: Option<&Pod>) -> Life {
    if worker.metadata.deletion_timestamp.is_some() {
        return Life::Leaving;
    }
    let Some(pod) = pod.filter(|pod| owns(worker, pod)) else {
        return match &worker.status {
            Some(status) if status.phase == Phase::Failed => Life::Ended,
            Some(status) if status.pod_uid.is_some() => Life::Unseen,
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
    life(worker, pod) == Life::Live
        && pod
            .is_some_and(|pod| condition(pod, "Ready").is_some_and(|ready| ready.status == "True"))
}

/// The worker's state and why.
#[must_use]
pub fn diagnose(worker: &LlavaWorker, pod: Option<&Pod>, beat: Option<&Beat>) -> Diagnosis {
    let foreign = pod.is_some_and(|pod| !owns(worker, pod));
    let pod = pod.filter(|pod| owns(worker, pod));
    match (life(worker, pod), pod) {
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
        None => match container(pod).and_then(last_end) {
            Some(end) if end.exit_code == 0 => Diagnosis::new(
                Phase::Failed,
                reason::COMPLETED,
                "the worker ended by itself",
            ),
            Some(end) => Diagnosis::new(Phase::Failed, end_reason(end), describe(end)),
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
    let Some(container) = container(pod) else {
        return Diagnosis::new(Phase::Pending, reason::STARTING, "the node sets the Pod up");
    };
    let state = container.state.clone().unwrap_or_default();
    if let Some(waiting) = state.waiting {
        let word = waiting.reason.unwrap_or_default();
        let said = waiting.message.unwrap_or_default();
        return match word.as_str() {
            "" | "ContainerCreating" | "PodInitializing" => {
                Diagnosis::new(Phase::Pending, reason::STARTING, "the node sets the Pod up")
            }
            "CrashLoopBackOff" => crashing(container, &said),
            "CreateContainerConfigError" if said.contains("secret \"") => {
                Diagnosis::new(Phase::Pending, reason::SECRET_MISSING, said)
            }
            _ => Diagnosis::new(Phase::Pending, &word, said),
        };
    }
    if state.terminated.is_some() {
        return crashing(container, "");
    }
    running(container, beat)
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

fn crashing(container: &ContainerStatus, said: &str) -> Diagnosis {
    let Some(end) = last_end(container) else {
        return Diagnosis::new(Phase::Unready, "CrashLoopBackOff", said);
    };
    let word = match end_reason(end) {
        "Error" => "CrashLoopBackOff",
        word => word,
    };
    let restarts = container.restart_count;
    let message = format!("{}; restarted {restarts} times", describe(end));
    Diagnosis::new(Phase::Unready, word, message)
}

/// The process runs and the readiness probe says no.
fn running(container: &ContainerStatus, beat: Option<&Beat>) -> Diagnosis {
    let (word, doing) = match beat
        .and_then(|beat| beat.report.as_ref())
        .map(|report| report.phase)
    {
        Some(Stage::Fetching) => (reason::FETCHING, "copies the checkpoint"),
        Some(Stage::WarmingUp) => (reason::WARMING_UP, "produces its first tokens"),
        Some(Stage::Draining) => {
            return Diagnosis::new(Phase::Draining, reason::DRAINING, "finishes its answers");
        }
        Some(Stage::Serving) => {
            return Diagnosis::new(
                Phase::Unready,
                reason::PROBE_FAILING,
                "the worker says that it serves, but its readiness probe fails",
            );
        }
        Some(Stage::Loading) => (reason::LOADING, "reads the weights"),
        None if container.started == Some(true) => {
            return Diagnosis::new(
                Phase::Unready,
                reason::PROBE_FAILING,
                "the process runs, but its readiness probe fails",
            );
        }
        None => (reason::LOADING, "brings the model up"),
    };
    match container
        .last_state
        .as_ref()
        .and_then(|state| state.terminated.as_ref())
    {
        Some(end) => Diagnosis::new(
            Phase::Loading,
            end_reason(end),
            format!(
                "{doing} after {} restarts; before: {}",
                container.restart_count,
                describe(end)
            ),
        ),
        None => Diagnosis::new(Phase::Loading, word, doing),
    }
}

fn end_reason(end: &ContainerStateTerminated) -> &str {
    end.reason.as_deref().unwrap_or("Error")
}

/// The worker's own last words first.
fn describe(end: &ContainerStateTerminated) -> String {
    let how = match end.reason.as_deref() {
        Some("OOMKilled") => "killed for memory; raise resources.limits.memory".to_owned(),
        _ => format!("the worker ended with status {}", end.exit_code),
    };
    match end.message.as_deref().map(str::trim) {
        Some(said) if !said.is_empty() => format!("{said} ({how})"),
        _ => how,
    }
}

fn last_end(container: &ContainerStatus) -> Option<&ContainerStateTerminated> {
    let now = container
        .state
        .as_ref()
        .and_then(|state| state.terminated.as_ref());
    now.or_else(|| {
        container
            .last_state
            .as_ref()
            .and_then(|state| state.terminated.as_ref())
    })
}

fn container(pod: &Pod) -> Option<&ContainerStatus> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses
        .iter()
        .find(|status| status.name == WORKER_CONTAINER)
}

fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == kind)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn worker(status: &Value) -> LlavaWorker {
        serde_json::from_value(json!({
            "apiVersion": "llava.dev/v1alpha1", "kind": "LlavaWorker",
            "metadata": {"namespace": "ns", "name": "llava-abc-0", "uid": "w"},
            "spec": {"deployment": "llava", "revision": "abc", "template": {
                "model": {"source": {}}, "engine": {}, "drain": {"timeout": "1m"}}},
            "status": status,
        }))
        .unwrap()
    }

    fn pod(node: Option<&str>, status: &Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": "llava-abc-0", "uid": "p",
                "ownerReferences": [{"apiVersion": "llava.dev/v1alpha1", "kind": "LlavaWorker", "name": "llava-abc-0", "uid": "w", "controller": true}],
            },
            "spec": {"containers": [], "nodeName": node},
            "status": status,
        }))
        .unwrap()
    }

    fn container(state: &Value, last: &Value) -> Value {
        json!({"phase": "Running", "containerStatuses": [{
            "name": WORKER_CONTAINER, "image": "", "imageID": "", "ready": false, "restartCount": 3,
            "state": state, "lastState": last,
        }]})
    }

    #[test]
    fn every_cause_has_its_own_reason_and_the_words_of_whoever_knows() {
        let none = json!({});
        let cases = [
            (
                None,
                json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."}]}),
                Phase::Pending,
                "Unschedulable",
                "Insufficient nvidia.com/gpu",
            ),
            (
                None,
                json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": "persistentvolumeclaim \"models\" not found"}]}),
                Phase::Pending,
                "VolumeClaimMissing",
                "\"models\" not found",
            ),
            (
                Some("n"),
                container(
                    &json!({"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image \"x\""}}),
                    &none,
                ),
                Phase::Pending,
                "ImagePullBackOff",
                "pulling image",
            ),
            (
                Some("n"),
                container(
                    &json!({"waiting": {"reason": "CreateContainerConfigError", "message": "secret \"hub\" not found"}}),
                    &none,
                ),
                Phase::Pending,
                "SecretMissing",
                "\"hub\"",
            ),
            (
                Some("n"),
                container(
                    &json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}}),
                    &json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}),
                ),
                Phase::Unready,
                "OOMKilled",
                "raise resources.limits.memory",
            ),
            (
                Some("n"),
                container(
                    &json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}}),
                    &json!({"terminated": {"exitCode": 1, "reason": "Error", "message": "cannot read config.json: no such file"}}),
                ),
                Phase::Unready,
                "CrashLoopBackOff",
                "cannot read config.json: no such file",
            ),
            (
                Some("n"),
                container(&json!({"running": {}}), &none),
                Phase::Loading,
                "Loading",
                "brings the model up",
            ),
            (
                Some("n"),
                json!({"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}),
                Phase::Failed,
                "Evicted",
                "low on resource",
            ),
            (
                Some("n"),
                json!({"phase": "Failed", "reason": "OutOfnvidia.com/gpu", "message": "Node didn't have enough resource: nvidia.com/gpu"}),
                Phase::Failed,
                "OutOfDevices",
                "enough resource",
            ),
            (
                Some("n"),
                json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}),
                Phase::Ready,
                "Ready",
                "answers",
            ),
        ];
        for (node, status, phase, reason, words) in cases {
            let pod = pod(node, &status);
            let found = diagnose(&worker(&none), Some(&pod), None);
            assert_eq!(
                (found.phase, found.reason.as_str()),
                (phase, reason),
                "{status}"
            );
            assert!(found.message.contains(words), "{}", found.message);
        }
    }

    #[test]
    fn a_pod_that_is_gone_after_it_was_there_ends_the_worker_once_that_is_certain() {
        assert_eq!(life(&worker(&json!({})), None), Life::Unborn);
        let born = worker(&json!({"podUID": "p"}));
        assert_eq!(life(&born, None), Life::Unseen, "a cache may be behind");
        let confirmed = worker(&json!({"podUID": "p", "phase": "Failed", "reason": "Evicted"}));
        assert_eq!(life(&confirmed, None), Life::Ended);
        assert_eq!(diagnose(&confirmed, None, None).reason, "Evicted");
    }

    #[test]
    fn a_foreign_pod_with_our_name_is_never_taken_for_ours() {
        let mut foreign = pod(
            Some("n"),
            &json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}),
        );
        foreign.owner_references_mut()[0].uid = "another".into();
        let worker = worker(&json!({}));
        assert!(!is_available(&worker, Some(&foreign)));
        assert_eq!(
            diagnose(&worker, Some(&foreign), None).reason,
            reason::NAME_TAKEN
        );
    }
}
