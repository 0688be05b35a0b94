//! The controller of LlavaWorkers: one worker, one Pod, one Lease.

pub mod apply;
pub mod diagnose;
pub mod lease;
pub mod life;
pub mod news;
pub mod observe;
pub mod plan;
pub mod pod;
pub mod report;
pub mod warnings;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crds::LlavaWorker;
use crds::name::{FIELD_MANAGER, WORKER, label};
use crds::worker::LlavaWorkerSpec;
use k8s_openapi::api::core::v1::Pod;
use kube::core::ObjectMeta;
use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use self::life::Life;
use crate::context::Context;
use crate::effects::EffectError;
use crate::key::Key;
use crate::now::Now;
use crate::outcome::Outcome;
use crate::pace::{Change, Verdict};
use crate::step::StepError;
use crate::world::Worker;

/// Name of the kind in metrics.
pub const KIND: &str = "LlavaWorker";

/// When to look again at what no event tells of.
const WAIT: Duration = Duration::from_secs(1);

/// How often a worker whose Pod does not come up is looked at without an event:
/// some causes show in other objects alone.
const PENDING_PERIOD: Duration = Duration::from_secs(1);

/// A reconciliation that has to be tried again.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The API server could not be asked, or refused.
    #[error(transparent)]
    Effect(#[from] EffectError),
    /// The Lease or the Pod could not be written.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The template is no Pod.
    #[error(transparent)]
    Plan(#[from] plan::PlanError),
}

/// Brings one worker's Pod and Lease to be, and tells how it goes.
///
/// # Errors
/// When it has to be tried again.
pub async fn reconcile(
    worker: Arc<LlavaWorker>,
    context: &Context,
) -> Result<Outcome, WorkerError> {
    let key = Key::of(&*worker);
    if context.is_behind(&*worker) || !caught_up(&key, context).await? {
        context.metrics.stale_sync(KIND);
        return Ok(Outcome::Behind(WAIT));
    }
    let observed = observe::observe(worker, &context.world, &context.effects).await?; // client
    if observed.life == Life::Unseen {
        return Ok(Outcome::Behind(WAIT));
    }
    let planned = plan::plan(&observed)?; // pure
    let applied = apply::apply(planned, &observed.worker, &context.world, &context.effects).await; // client
    let now = Now::read();
    let status = report::status(&observed, &applied, &now); // pure
    let next = tell(&observed, &status, &now, context).await?; // client
    match applied.error {
        // A namespace that is being deleted takes everything with it.
        Some(error) if error.is_gone() => Ok(Outcome::Done(None)),
        Some(error) => Err(error.into()),
        None if applied.wait => Ok(Outcome::Done(Some(WAIT))),
        None => Ok(Outcome::Done(next)),
    }
}

/// Writes the status when that is worth it, then the Event that goes with it.
async fn tell(
    observed: &observe::Observed,
    status: &crds::LlavaWorkerStatus,
    now: &Now,
    context: &Context,
) -> Result<Option<Duration>, EffectError> {
    let worker = &observed.worker;
    let uid = worker.uid().unwrap_or_default();
    let before = worker.status.as_ref();
    let change = news::change(before, status);
    let busy = context.effects.are_busy();
    match context.paces.judge(&uid, change, busy, now.monotonic) {
        Verdict::Later(wait) => return Ok(Some(wait)),
        Verdict::Same => {}
        Verdict::Write => {
            let mut told = LlavaWorker::clone(worker);
            told.status = Some(status.clone());
            match context.effects.report(&told, change == Change::News).await {
                Ok(written) => context.wrote_status(&written, now.monotonic),
                // The newer version has an event of its own.
                Err(error) if error.is_conflict() => {
                    context.metrics.stale_sync(KIND);
                    return Ok(None);
                }
                Err(error) if error.is_gone() => return Ok(None),
                Err(error) => return Err(error),
            }
            if let Some(event) = news::event(before, status) {
                context.effects.tell(&**worker, event).await;
            }
        }
    }
    let pending = status.phase == crds::worker::Phase::Pending && observed.life == Life::Live;
    Ok(pending.then_some(PENDING_PERIOD))
}

/// Whether the cache shows our own last writes for this worker.
async fn caught_up(key: &Key, context: &Context) -> Result<bool, EffectError> {
    let pods = &context.world.pods;
    let unseen = context.world.pod_writes.unseen(key, |pending| {
        let reference = ObjectRef::new(&pending.object.name).within(&pending.object.namespace);
        pods.get(&reference)
            .is_some_and(|pod| pod.uid().as_deref() == Some(&pending.uid))
    });
    let now = shell::clock::now();
    let mut waiting = false;
    for pending in unseen {
        if pending.is_overdue(now) {
            let found: Option<Pod> = context.effects.get(&pending.object).await?;
            if found.and_then(|pod| pod.uid()).as_deref() != Some(&pending.uid) {
                context.world.pod_writes.saw(key, &pending.uid, true);
                continue;
            }
        }
        waiting = true;
    }
    Ok(!waiting)
}

/// The worker to reconcile, unless it cannot be read.
#[must_use]
pub fn readable(worker: &Worker) -> Option<Arc<LlavaWorker>> {
    match &worker.0 {
        Ok(worker) => Some(Arc::new(worker.clone())),
        Err(invalid) => {
            tracing::warn!(
                error = invalid.error,
                name = worker.name_any(),
                "LlavaWorker cannot be read"
            );
            None
        }
    }
}

/// What is known of a worker that cannot be read: its metadata. Its spec names no
/// revision, so that nothing is made after it.
#[must_use]
pub fn bare(metadata: &ObjectMeta) -> LlavaWorker {
    LlavaWorker {
        metadata: metadata.clone(),
        spec: LlavaWorkerSpec::default(),
        status: None,
    }
}

/// Labels of a worker's Pod and Lease.
#[must_use]
pub fn labels(worker: &LlavaWorker) -> BTreeMap<String, String> {
    let name = worker.name_any();
    [
        (label::NAME, WORKER),
        (label::INSTANCE, &worker.spec.deployment),
        (label::MANAGED_BY, FIELD_MANAGER),
        (label::DEPLOYMENT, &worker.spec.deployment),
        (label::REVISION, &worker.spec.revision),
        (label::WORKER, &name),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// The owner reference of what belongs to a worker.
#[must_use]
pub fn owner(worker: &LlavaWorker, blocks: bool) -> Value {
    json!({
        "apiVersion": LlavaWorker::api_version(&()),
        "kind": LlavaWorker::kind(&()),
        "name": worker.metadata.name,
        "uid": worker.metadata.uid,
        "controller": true,
        "blockOwnerDeletion": blocks,
    })
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::fake::{self, Fake, refusal};

    fn worker() -> Arc<LlavaWorker> {
        let template = json!({
            "model": {"source": {"http": {"url": "https://a/b"}}}, "engine": {}, "drain": {"timeout": "1m"},
        });
        let worker = json!({
            "apiVersion": "llava.dev/v1alpha1", "kind": "LlavaWorker",
            "metadata": {"namespace": "ns", "name": "llava-abc-0", "uid": "w"},
            "spec": {"deployment": "llava", "revision": "abc", "template": template},
        });
        Arc::new(serde_json::from_value(worker).unwrap())
    }

    #[tokio::test]
    async fn a_pod_that_is_gone_before_the_status_tells_of_it_has_no_successor_of_its_name() {
        let server = Fake::default();
        let client = server.client(|asked| {
            let mut object = asked.body.clone();
            object["metadata"]["uid"] = json!("p");
            match asked.method {
                Method::GET => refusal(404, "NotFound"),
                _ => Some((200, object)),
            }
        });
        let context = fake::context(&client);
        reconcile(worker(), &context).await.unwrap();
        let told = || server.asked(&Method::PUT, "/llavaworkers/llava-abc-0/status");
        assert_eq!(server.asked(&Method::POST, "/pods").len(), 1);
        assert!(told().is_empty(), "a first step costs no write of its own");

        // Somebody deletes the Pod, and no status was worth its write yet.
        let key = Key::new("ns", "llava-abc-0");
        context.world.pod_writes.saw(&key, "p", true);
        reconcile(worker(), &context).await.unwrap();
        assert_eq!(server.asked(&Method::POST, "/pods").len(), 1);
        let status = &told()[0].body["status"];
        assert_eq!(status["phase"], "Failed", "{status}");
        assert_eq!(status["reason"], "PodDeleted");
        assert_eq!(status["podUID"], "p");
    }
}
