//! From a client to a running operator: election, caches, controllers.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::future::select_all;
use kube::Client;
use kube::runtime::reflector::ObjectRef;
use shell::readiness::Readiness;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::drive::drive;
use crate::effects::{Effects, answering, in_order};
use crate::key::Key;
use crate::leader::{Claim, Election};
use crate::metrics::Metrics;
use crate::outcome::Outcome;
use crate::queue::{Asked, Queue};
use crate::settings::Settings;
use crate::world::{Worker, World};
use crate::{deployment, worker};

/// Who stands for election, and where.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub lease: String,
    /// A name that no other process has.
    pub identity: String,
}

/// Why the operator ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// Another process leads, or may lead by now.
    #[error("the claim to lead was lost")]
    LostLead,
    /// A part that must not end did.
    #[error("a controller ended by itself")]
    Ended,
}

/// Runs until `stop` is cancelled or the lead is lost. Dropping the future ends
/// everything at once: nothing runs beside it.
///
/// # Errors
/// When the lead is lost; the process should end, and start anew without caches.
pub async fn run(
    client: Client,
    settings: Settings,
    candidate: Option<Candidate>,
    readiness: &Readiness,
    metrics: Metrics,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let api = readiness.condition("api server");
    let Some(candidate) = candidate else {
        api.set(true);
        return lead(client, settings, Claim::always(), None, metrics, stop).await;
    };
    let claim = Claim::none();
    let Candidate {
        namespace,
        lease,
        identity,
    } = candidate;
    let mut election = Election::new(client.clone(), &namespace, &lease, &identity, claim.clone());
    // A standby has nothing cached that could be stale when it takes over.
    tokio::select! {
        () = election.win(|| api.set(true)) => {}
        () = stop.cancelled() => return Ok(()),
    }
    let ended = tokio::select! {
        () = election.keep() => Err(RunError::LostLead),
        ended = lead(client, settings, claim, Some(identity), metrics, stop) => ended,
    };
    election.release().await;
    ended
}

async fn lead(
    client: Client,
    settings: Settings,
    claim: Claim,
    instance: Option<String>,
    metrics: Metrics,
    stop: CancellationToken,
) -> Result<(), RunError> {
    metrics.set_leading(true);
    let effects = Effects::new(client.clone(), claim, &settings, instance, metrics.clone());
    let (world, requests, watches) =
        World::watch(&client, &settings.scope, &settings.router_namespace);
    let context = Arc::new(Context::new(
        world.clone(),
        effects,
        metrics.clone(),
        settings,
    ));
    let controllers = async {
        world.synced().await;
        tracing::info!("caches are complete");
        let deployments = drive(requests.deployments, |key| deployment_step(key, &context));
        let workers = drive(requests.workers, |key| worker_step(key, &context));
        tokio::join!(deployments, workers, count_phases(&world, &metrics));
    };
    let ended = tokio::select! {
        () = stop.cancelled() => Ok(()),
        () = controllers => Err(RunError::Ended),
        _ = select_all(watches) => Err(RunError::Ended),
    };
    metrics.set_leading(false);
    ended
}

/// Reconciles one LlavaDeployment; returns when to look at it again.
async fn deployment_step(key: Key, context: &Context) -> Option<Duration> {
    let world = &context.world;
    let queue = world.deployment_queue();
    let asked = queue.take_asked(&key);
    let reference = ObjectRef::new(&key.name).within(&key.namespace);
    let Some(object) = world.deployments.get(&reference) else {
        context.forget(&key);
        return None;
    };
    match &object.0 {
        Ok(deployment) => {
            // Boxed: each layer around it would hold it by value, on the stack at first.
            let work = deployment::reconcile(Arc::new(deployment.clone()), context);
            let work = Box::pin(in_order(world.since(&key), work));
            measured(work, deployment::KIND, key, (queue, asked), context).await
        }
        Err(invalid) => {
            tracing::warn!(error = invalid.error, %key, "LlavaDeployment cannot be read");
            None
        }
    }
}

/// Reconciles one LlavaWorker; returns when to look at it again.
async fn worker_step(key: Key, context: &Context) -> Option<Duration> {
    let world = &context.world;
    let queue = world.worker_queue();
    let asked = queue.take_asked(&key);
    let reference = ObjectRef::new(&key.name).within(&key.namespace);
    let object = world.workers.get(&reference)?;
    let readable = worker::readable(&object)?;
    let parent = Key::new(&key.namespace, &readable.spec.deployment);
    let work = worker::reconcile(readable, context);
    let work = Box::pin(in_order(world.since(&parent), work));
    measured(work, worker::KIND, key, (queue, asked), context).await
}

/// Counts and times one reconciliation. One that failed is tried again.
async fn measured<E: fmt::Display>(
    work: impl Future<Output = Result<Outcome, E>>,
    kind: &'static str,
    key: Key,
    (queue, asked): (&Queue, Option<Asked>),
    context: &Context,
) -> Option<Duration> {
    let start = shell::clock::now();
    let (done, unanswered) = answering(kind, asked.map(|asked| asked.at), work).await;
    let now = shell::clock::now();
    if let Some(asked) = asked
        && unanswered.is_some()
        && !matches!(done, Ok(Outcome::Done(_)))
    {
        queue.put_back(&key, asked);
    }
    let took = now.saturating_duration_since(start);
    context.metrics.reconciled(kind, took, done.is_err());
    match done {
        Ok(outcome) => {
            context.retries.forget(&(kind, key));
            outcome.again()
        }
        Err(error) => {
            tracing::warn!(%error, kind, %key, "will be tried again");
            Some(context.retries.failed(&(kind, key), now))
        }
    }
}

/// Keeps the gauge of workers by phase.
async fn count_phases(world: &World, metrics: &Metrics) {
    use crds::worker::Phase;
    let phases = [
        Phase::Pending,
        Phase::Loading,
        Phase::Ready,
        Phase::Unready,
        Phase::Draining,
        Phase::Failed,
    ];
    let mut ticks = tokio::time::interval(Duration::from_secs(5));
    loop {
        ticks.tick().await;
        let workers = world.workers.state();
        for phase in phases {
            let of_phase = |worker: &&Arc<Worker>| {
                let status = worker
                    .0
                    .as_ref()
                    .ok()
                    .and_then(|worker| worker.status.as_ref());
                status.map_or(Phase::Pending, |status| status.phase) == phase
            };
            metrics.set_workers(phase.as_str(), workers.iter().filter(of_phase).count());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{self, Fake};

    #[tokio::test]
    async fn an_event_that_nothing_was_decided_on_is_answered_by_the_next_look() {
        let context = fake::context(&Fake::default().client(|_| None));
        let queue = context.world.worker_queue();
        let key = Key::new("ns", "llava-abc-0");
        let asked = Some(Asked {
            at: shell::clock::now(),
            echo: false,
        });
        let wait = Duration::from_secs(1);
        for (done, left) in [
            (Ok(Outcome::Behind(wait)), asked),
            (Err("no answer"), asked),
            (Ok(Outcome::Done(Some(wait))), None),
        ] {
            let work = async { done };
            measured(work, worker::KIND, key.clone(), (queue, asked), &context).await;
            assert_eq!(queue.take_asked(&key), left, "{done:?}");
        }
    }
}
