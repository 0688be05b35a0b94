//! Carries out a worker's plan (client).

use crds::LlavaWorker;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::plan::Planned;
use crate::effects::Effects;
use crate::expectations::Expected;
use crate::key::Key;
use crate::step::{StepError, existing, settle};
use crate::world::World;

/// What a worker's reconciliation did.
#[derive(Debug, Default)]
pub struct Applied {
    /// The Pod that was created, now or by an answer that was lost.
    pub pod: Option<Pod>,
    /// Whether something has to be waited for without an event.
    pub wait: bool,
    /// What stopped it.
    pub error: Option<StepError>,
}

/// Acts. The Lease comes first: the worker's token may renew it but not create it.
pub async fn apply(
    planned: Planned,
    worker: &LlavaWorker,
    world: &World,
    effects: &Effects,
) -> Applied {
    let mut applied = Applied::default();
    if let Err(error) = steps(planned, worker, world, effects, &mut applied).await {
        applied.error = Some(error);
    }
    applied
}

async fn steps(
    planned: Planned,
    worker: &LlavaWorker,
    world: &World,
    effects: &Effects,
    applied: &mut Applied,
) -> Result<(), StepError> {
    let Planned { lease, pod } = planned;
    let key = Key::of(worker);
    let uid = worker.uid().unwrap_or_default();
    let owner = ("LlavaWorker", uid.as_str());
    if !settle::<Lease>(lease, &key, owner, effects).await? {
        applied.wait = true;
        return Ok(());
    }
    let Some(pod) = pod else {
        return Ok(());
    };
    let there = match effects.create(&*pod).await {
        Ok(created) => Some(created),
        Err(error) if error.is_already_exists() => existing(&key, owner, effects).await?,
        Err(error) => return Err(error.into()),
    };
    let Some(pod) = there else {
        applied.wait = true;
        return Ok(());
    };
    let pod_uid = pod.uid().unwrap_or_default();
    world.births().saw(&uid, &pod_uid);
    let now = shell::clock::now();
    world
        .pod_writes
        .wrote(&key, key.clone(), &pod_uid, Expected::Created, now);
    applied.pod = Some(pod);
    Ok(())
}
