//! A worker's status and Events (pure), from what was observed and applied.

use std::time::{Duration, Instant};

use crds::condition::{reason, worker as kind};
use crds::worker::{Heartbeat, LlavaWorkerStatus, Phase};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::runtime::events::{Event, EventType};

use super::apply::Applied;
use super::observe::Observed;
use crate::conditions::{Conditions, Truth};
use crate::now::Now;

/// How often load figures alone are worth a write.
pub const LOAD_PERIOD: Duration = Duration::from_secs(10);

/// What becomes of a new status.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It says what the object says already.
    Same,
    /// Only load figures differ and they were written a moment ago.
    Later(Duration),
    /// It has to be written.
    Write,
}

/// The status that tells what is known now.
#[must_use]
pub fn status(observed: &Observed, applied: &Applied, now: &Now) -> LlavaWorkerStatus {
    let before = observed.worker.status.clone().unwrap_or_default();
    let pod = observed
        .pod
        .as_deref()
        .filter(|pod| super::diagnose::owns(&observed.worker, pod));
    let mut diagnosis = observed.diagnosis.clone();
    if let Some(refusal) = applied.error.as_ref().and_then(|error| error.refusal()) {
        diagnosis.phase = Phase::Pending;
        diagnosis.reason = reason::CREATE_REFUSED.to_owned();
        diagnosis.message = refusal.chars().take(1024).collect();
    }
    let beat = observed.beat.as_ref();
    let load = beat.and_then(|beat| beat.report.clone());
    let heartbeat = match beat {
        None if pod.is_none() => before.heartbeat,
        None => Heartbeat::Missing,
        Some(beat) => beat.heartbeat().unwrap_or(match before.heartbeat {
            Heartbeat::Missing => Heartbeat::Fresh,
            known => known,
        }),
    };
    let generation = observed.worker.metadata.generation;
    let mut conditions = Conditions::new(&before.conditions, generation, now);
    let node = pod
        .and_then(|pod| pod.spec.as_ref()?.node_name.clone())
        .or(before.node);
    conditions.set(
        kind::SCHEDULED,
        Truth::from(node.is_some()),
        if node.is_some() {
            "Scheduled"
        } else {
            &diagnosis.reason
        },
        node.as_deref().unwrap_or(&diagnosis.message),
    );
    conditions.set(
        kind::READY,
        Truth::from(diagnosis.phase == Phase::Ready),
        &diagnosis.reason,
        &diagnosis.message,
    );
    let count = |figure: Option<u32>| i32::try_from(figure.unwrap_or_default()).unwrap_or(i32::MAX);
    LlavaWorkerStatus {
        observed_generation: generation,
        phase: diagnosis.phase,
        reason: Some(diagnosis.reason),
        message: Some(diagnosis.message),
        node,
        pod_ip: pod
            .and_then(|pod| pod.status.as_ref()?.pod_ip.clone())
            .or(before.pod_ip),
        pod_uid: before
            .pod_uid
            .or_else(|| pod.and_then(ResourceExt::uid))
            .or_else(|| applied.pod.as_ref().and_then(ResourceExt::uid)),
        accelerator: accelerator(observed),
        queue_length: count(load.as_ref().map(|load| load.waiting)),
        running_requests: count(load.as_ref().map(|load| load.running)),
        slots: count(load.as_ref().map(|load| load.slots)),
        load_seconds: load
            .and_then(|load| load.load_seconds)
            .map(|seconds| (f64::from(seconds) * 10.0).round() / 10.0)
            .or(before.load_seconds),
        heartbeat,
        last_heartbeat: beat
            .and_then(|beat| {
                k8s_openapi::jiff::Timestamp::from_second(beat.renewed.0.as_second()).ok()
            })
            .map(Time)
            .or(before.last_heartbeat),
        conditions: conditions.finish(),
    }
}

/// Whether the status is worth a write. The time of the last heartbeat alone
/// never is: a cluster at rest must stay silent.
#[must_use]
pub fn verdict(
    before: Option<&LlavaWorkerStatus>,
    after: &LlavaWorkerStatus,
    load_written: Option<Instant>,
    now: Instant,
) -> Verdict {
    let Some(before) = before else {
        return Verdict::Write;
    };
    let timeless = LlavaWorkerStatus {
        last_heartbeat: before.last_heartbeat.clone(),
        ..after.clone()
    };
    if timeless == *before {
        return Verdict::Same;
    }
    let loadless = LlavaWorkerStatus {
        queue_length: before.queue_length,
        running_requests: before.running_requests,
        ..timeless
    };
    if loadless != *before {
        return Verdict::Write;
    }
    let since = load_written.map(|when| now.saturating_duration_since(when));
    match since {
        Some(since) if since < LOAD_PERIOD => Verdict::Later(LOAD_PERIOD - since),
        _ => Verdict::Write,
    }
}

/// The Event that a change of status is worth, once per transition.
#[must_use]
pub fn event(before: Option<&LlavaWorkerStatus>, after: &LlavaWorkerStatus) -> Option<Event> {
    let was = before.map(|status| (status.phase, status.reason.as_deref()));
    let is = (after.phase, after.reason.as_deref());
    if was == Some(is) {
        return None;
    }
    let word = after.reason.clone().unwrap_or_default();
    let unusual = match after.phase {
        Phase::Failed | Phase::Unready => true,
        Phase::Pending => !matches!(
            word.as_str(),
            reason::POD_MISSING | reason::UNSCHEDULED | reason::STARTING
        ),
        Phase::Ready => word == reason::HEARTBEAT_LOST,
        Phase::Loading => !matches!(
            word.as_str(),
            reason::LOADING | reason::FETCHING | reason::WARMING_UP
        ),
        Phase::Draining => false,
    };
    let first_answer =
        after.phase == Phase::Ready && before.is_none_or(|before| before.phase != Phase::Ready);
    (unusual || first_answer).then(|| Event {
        type_: if unusual {
            EventType::Warning
        } else {
            EventType::Normal
        },
        reason: word,
        note: after.message.clone(),
        action: "Observe".to_owned(),
        secondary: None,
    })
}

/// What the Pod was given, such as `1 nvidia.com/gpu`.
fn accelerator(observed: &Observed) -> Option<String> {
    let resources = observed.worker.spec.template.resources.as_ref()?;
    let devices: Vec<_> = resources
        .limits
        .iter()
        .filter(|(name, _)| name.contains('/'))
        .map(|(name, count)| format!("{} {name}", count.0))
        .collect();
    (!devices.is_empty()).then(|| devices.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewal_alone_writes_nothing_and_load_only_now_and_then() {
        let now = shell::clock::now();
        let before = LlavaWorkerStatus::default();
        let renewed = LlavaWorkerStatus {
            last_heartbeat: Some(Now::read().time()),
            ..before.clone()
        };
        assert_eq!(verdict(Some(&before), &renewed, None, now), Verdict::Same);
        let busy = LlavaWorkerStatus {
            running_requests: 3,
            ..renewed
        };
        assert_eq!(verdict(Some(&before), &busy, None, now), Verdict::Write);
        let later = now + Duration::from_secs(4);
        assert_eq!(
            verdict(Some(&before), &busy, Some(now), later),
            Verdict::Later(Duration::from_secs(6))
        );
        let ready = LlavaWorkerStatus {
            phase: Phase::Ready,
            ..busy
        };
        assert_eq!(
            verdict(Some(&before), &ready, Some(now), later),
            Verdict::Write
        );
    }
}
