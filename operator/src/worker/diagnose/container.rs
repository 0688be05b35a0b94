//! What the node says of the worker's container, and the worker of itself.

use crds::condition::reason;
use crds::name::WORKER_CONTAINER;
use crds::worker::{Heartbeat, Phase};
use k8s_openapi::api::core::v1::{ContainerStateTerminated, ContainerStatus, Pod};
use protocol::load::Phase as Stage;

use super::Diagnosis;
use crate::heartbeat::Beat;

/// The state of a container that is not ready, and why.
pub(super) fn diagnose(container: &ContainerStatus, beat: Option<&Beat>) -> Diagnosis {
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
    if beat.and_then(Beat::heartbeat) == Some(Heartbeat::Stale) {
        return Diagnosis::new(
            Phase::Unready,
            reason::HEARTBEAT_LOST,
            "not ready, and its Lease is no longer renewed: its node may be lost",
        );
    }
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

pub(super) fn end_reason(end: &ContainerStateTerminated) -> &str {
    end.reason.as_deref().unwrap_or("Error")
}

/// The worker's own last words first.
pub(super) fn describe(end: &ContainerStateTerminated) -> String {
    let how = match end.reason.as_deref() {
        Some("OOMKilled") => "killed for memory; raise resources.limits.memory".to_owned(),
        _ => format!("the worker ended with status {}", end.exit_code),
    };
    match end.message.as_deref().map(str::trim) {
        Some(said) if !said.is_empty() => format!("{said} ({how})"),
        _ => how,
    }
}

pub(super) fn last_end(container: &ContainerStatus) -> Option<&ContainerStateTerminated> {
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

pub(super) fn of(pod: &Pod) -> Option<&ContainerStatus> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    statuses
        .iter()
        .find(|status| status.name == WORKER_CONTAINER)
}
