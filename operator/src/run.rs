//! From a client to a running operator: election, caches, controllers.

use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::select_all;
use futures::stream::StreamExt;
use kube::Client;
use kube::runtime::controller::{self, Action, applier};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Resource, ResourceExt};
use shell::readiness::Readiness;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::effects::{Effects, answering};
use crate::key::Key;
use crate::leader::{Claim, Election};
use crate::metrics::Metrics;
use crate::settings::Settings;
use crate::world::{Deployment, Queue, Worker, World};
use crate::{deployment, worker};

/// How long events gather before one reconciliation answers them all.
const DEBOUNCE: Duration = Duration::from_millis(20);

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
    let effects = Effects::new(
        client.clone(),
        claim,
        settings.call_timeout,
        instance,
        metrics.clone(),
    );
    let (world, requests, watches) =
        World::watch(&client, &settings.scope, &settings.router_namespace);
    let concurrency = settings.concurrency;
    let context = Arc::new(Context::new(
        world.clone(),
        effects,
        metrics.clone(),
        settings,
    ));
    let controllers = async {
        world.synced().await;
        tracing::info!("caches are complete");
        let deployments = drive(
            world.deployments.clone(),
            requests.deployments,
            concurrency,
            context.clone(),
            deployment_step,
        );
        let workers = drive(
            world.workers.clone(),
            requests.workers,
            concurrency,
            context.clone(),
            worker_step,
        );
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

type Step = Pin<Box<dyn Future<Output = Result<Action, Failure>> + Send>>;

/// A failed reconciliation; only its words are needed any more.
#[derive(Debug)]
struct Failure(String);

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

/// Reconciles what is asked for, one object at a time each, for ever.
async fn drive<K>(
    store: Store<K>,
    requests: futures::channel::mpsc::UnboundedReceiver<ObjectRef<K>>,
    concurrency: u16,
    context: Arc<Context>,
    step: fn(Arc<K>, Arc<Context>) -> Step,
) where
    K: Resource<DynamicType = ()> + Clone + 'static,
    K::DynamicType: Hash + Eq,
{
    let config = controller::Config::default()
        .concurrency(concurrency)
        .debounce(DEBOUNCE);
    let queue = requests.map(Ok::<_, std::convert::Infallible>);
    applier(step, retry, context, store, queue, config)
        .for_each(|outcome| async {
            if let Err(controller::Error::ReconcilerFailed(error, object)) = outcome {
                tracing::warn!(%error, %object, "will be tried again");
            }
        })
        .await;
}

/// When a failed reconciliation is tried again.
#[expect(clippy::needless_pass_by_value, reason = "the applier passes them so")]
fn retry<K: Resource<DynamicType = ()>>(
    object: Arc<K>,
    _: &Failure,
    context: Arc<Context>,
) -> Action {
    let kind = if K::kind(&()) == deployment::KIND {
        deployment::KIND
    } else {
        worker::KIND
    };
    let key = Key::new(object.namespace().unwrap_or_default(), object.name_any());
    let delay = context.retries.failed(&(kind, key), shell::clock::now());
    Action::requeue(delay)
}

fn deployment_step(object: Arc<Deployment>, context: Arc<Context>) -> Step {
    Box::pin(async move {
        let key = Key::of(&*object);
        let queue = context.world.deployment_queue();
        let readable = match &object.0 {
            Ok(deployment) => Arc::new(deployment.clone()),
            Err(invalid) => {
                tracing::warn!(error = invalid.error, %key, "LlavaDeployment cannot be read");
                queue.take_asked(&key);
                return Ok(Action::await_change());
            }
        };
        let work = deployment::reconcile(readable, &context);
        measured(work, deployment::KIND, key, queue, &context).await
    })
}

fn worker_step(object: Arc<Worker>, context: Arc<Context>) -> Step {
    Box::pin(async move {
        let key = Key::of(&*object);
        let queue = context.world.worker_queue();
        let Some(readable) = worker::readable(&object) else {
            queue.take_asked(&key);
            return Ok(Action::await_change());
        };
        let work = worker::reconcile(readable, &context);
        measured(work, worker::KIND, key, queue, &context).await
    })
}

/// Counts and times one reconciliation.
async fn measured<K, E>(
    work: impl Future<Output = Result<Action, E>>,
    kind: &'static str,
    key: Key,
    queue: &Queue<K>,
    context: &Context,
) -> Result<Action, Failure>
where
    K: Resource<DynamicType = ()> + 'static,
    E: fmt::Display,
{
    let start = shell::clock::now();
    let done = answering(kind, queue.take_asked(&key), work).await;
    let took = shell::clock::now().saturating_duration_since(start);
    context.metrics.reconciled(kind, took, done.is_err());
    if done.is_ok() {
        context.retries.forget(&(kind, key));
    }
    done.map_err(|error| Failure(error.to_string()))
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
