//! A worker's status (pure), from what was observed and applied.

use crds::condition::worker as kind;
use crds::worker::{Heartbeat, LlavaWorkerStatus, Phase};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use super::apply::Applied;
use super::observe::Observed;
use crate::conditions::{Conditions, Truth};
use crate::now::Now;

/// The status that tells what is known now.
#[must_use]
pub fn status(observed: &Observed, applied: &Applied, now: &Now) -> LlavaWorkerStatus {
    let before = observed.worker.status.clone().unwrap_or_default();
    let pod = observed
        .pod
        .as_deref()
        .filter(|pod| super::life::owns(&observed.worker, pod));
    let mut diagnosis = observed.diagnosis.clone();
    if let Some(error) = &applied.error
        && let Some(said) = error.for_people()
    {
        diagnosis.phase = Phase::Pending;
        diagnosis.reason = error.reason().to_owned();
        diagnosis.message = said.chars().take(1024).collect();
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
            .or_else(|| applied.pod.as_ref().and_then(ResourceExt::uid))
            .or_else(|| observed.born.clone()),
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
