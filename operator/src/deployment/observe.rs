//! What there is to know of one deployment (reads the stores; asks the API
//! server only for writes of ours that the stores should show by now).

use std::sync::Arc;
use std::time::Duration;

use crds::name::{child_name, label};
use crds::worker::Phase;
use crds::{LlavaDeployment, LlavaWorker};
use k8s_openapi::api::core::v1::{Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::runtime::reflector::ObjectRef;
use kube::{Resource, ResourceExt};
use protocol::load::Demand;

use super::plan::Member;
use crate::context::Context;
use crate::effects::EffectError;
use crate::expectations::Expected;
use crate::key::Key;
use crate::now::Now;
use crate::revision;
use crate::worker::life::{self, Life};
use crate::worker::{self, diagnose};

/// One deployment and its surroundings at one instant.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The deployment.
    pub deployment: Arc<LlavaDeployment>,
    /// Its namespace and name.
    pub key: Key,
    /// Its workers, as objects and as the planner sees them.
    pub workers: Vec<(Arc<LlavaWorker>, Member)>,
    /// Requests that wait at workers.
    pub waiting: usize,
    /// Requests that run at workers.
    pub running: usize,
    /// What the routers have in their hands.
    pub demand: Demand,
    /// How long to wait still before an ended worker is replaced.
    pub replace_in: Duration,
    /// Names of Pods that belong to no worker of ours.
    pub taken: Vec<String>,
    /// What the deployment owns beside workers.
    pub children: Found,
    /// When this was.
    pub now: Now,
}

/// The children that exist, whoever owns them.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The ServiceAccount.
    pub account: Option<Arc<ServiceAccount>>,
    /// The Role.
    pub role: Option<Arc<Role>>,
    /// The RoleBinding.
    pub binding: Option<Arc<RoleBinding>>,
    /// The headless Service.
    pub service: Option<Arc<Service>>,
    /// The PodDisruptionBudget.
    pub budget: Option<Arc<PodDisruptionBudget>>,
    /// The NetworkPolicy.
    pub policy: Option<Arc<NetworkPolicy>>,
}

/// Looks.
#[must_use]
pub fn observe(deployment: Arc<LlavaDeployment>, context: &Context) -> Observed {
    let key = Key::of(&*deployment);
    let now = Now::read();
    let uid = deployment.uid().unwrap_or_default();
    let world = &context.world;
    let mut workers = Vec::new();
    let (mut waiting, mut running) = (0, 0);
    for worker in world.workers_of(&key) {
        let bare;
        let (worker, readable) = match &worker.0 {
            Ok(worker) => (worker, true),
            Err(invalid) => {
                bare = worker::bare(&invalid.metadata);
                (&bare, false)
            }
        };
        let ours = worker
            .owner_references()
            .iter()
            .any(|owner| owner.controller == Some(true) && owner.uid == uid);
        if !ours {
            continue;
        }
        let name = ObjectRef::new(&worker.name_any()).within(&key.namespace);
        let pod = world.pods.get(&name);
        let (mut member, load) = member(worker, pod.as_deref(), context, &key, &now);
        if !readable {
            only_its_pod_counts(worker, &key, &mut member);
        }
        waiting += load.0;
        running += load.1;
        workers.push((Arc::new(worker.clone()), member));
    }
    count_ends(&workers, context, &key, &now);
    workers.sort_by(|(_, one), (_, two)| {
        (&one.revision, one.ordinal).cmp(&(&two.revision, two.ordinal))
    });
    let child = ObjectRef::<Service>::new(&child_name(&key.name)).within(&key.namespace);
    let children = Found {
        service: world.services.get(&child),
        account: world
            .accounts
            .get(&ObjectRef::new(&child.name).within(&key.namespace)),
        role: world
            .roles
            .get(&ObjectRef::new(&child.name).within(&key.namespace)),
        binding: world
            .bindings
            .get(&ObjectRef::new(&child.name).within(&key.namespace)),
        policy: world
            .policies
            .get(&ObjectRef::new(&child.name).within(&key.namespace)),
        budget: world
            .budgets
            .get(&ObjectRef::new(&child.name).within(&key.namespace)),
    };
    let taken = world.pod_names_of(&key);
    Observed {
        waiting,
        running,
        demand: world.demands().of(&key, now.monotonic),
        replace_in: context.replacements.remaining(&key, now.monotonic),
        deployment,
        key,
        workers,
        taken,
        children,
        now,
    }
}

/// A worker as the planner sees it, with its waiting and running requests.
fn member(
    worker: &LlavaWorker,
    pod: Option<&Pod>,
    context: &Context,
    deployment: &Key,
    now: &Now,
) -> (Member, (usize, usize)) {
    let key = Key::of(worker);
    let uid = worker.uid().unwrap_or_default();
    let pod_uid = pod.and_then(ResourceExt::uid).unwrap_or_default();
    let beat = context.world.heartbeats().get(&key, &pod_uid).cloned();
    let report = beat
        .as_ref()
        .and_then(|beat| beat.report.clone())
        .unwrap_or_default();
    let born = context.world.births().of(&uid).map(str::to_owned);
    let life = life::life(worker, pod, born.as_deref());
    let lacking = diagnose::diagnose(worker, life, pod, beat.as_ref()).lacks_room();
    let without_room = context.with_memory(deployment, |memory| {
        memory.without_room(&uid, lacking, now.monotonic)
    });
    let spec = &worker.spec;
    let member = Member {
        ordinal: revision::ordinal(&key.name, &spec.deployment, &spec.revision).unwrap_or(u32::MAX),
        name: key.name,
        uid,
        revision: spec.revision.clone(),
        life,
        available: life::is_available(worker, pod),
        queue: report.queue_length(),
        without_room,
        terminating: worker.metadata.deletion_timestamp.is_some(),
        told: (worker.status.as_ref()).is_some_and(|status| status.phase == Phase::Failed),
        pod_lives: life::pod_lives(worker, pod),
    };
    let count = |figure| usize::try_from(figure).unwrap_or(usize::MAX);
    (member, (count(report.waiting), count(report.running)))
}

/// A worker that cannot be read is what its Pod is: it may well answer. Without one it
/// has ended, since nobody can make its Pod or tell what became of it.
fn only_its_pod_counts(worker: &LlavaWorker, deployment: &Key, member: &mut Member) {
    if let Some(revision) = worker.labels().get(label::REVISION) {
        member.ordinal =
            revision::ordinal(&member.name, &deployment.name, revision).unwrap_or(member.ordinal);
        member.revision.clone_from(revision);
    }
    if matches!(member.life, Life::Unborn | Life::Unseen) {
        member.life = Life::Ended;
    }
    member.told = true;
}

/// Each end counts once towards the back-off of replacements.
fn count_ends(workers: &[(Arc<LlavaWorker>, Member)], context: &Context, key: &Key, now: &Now) {
    let fresh = context.with_memory(key, |memory| {
        memory.retain(|uid| workers.iter().any(|(_, member)| member.uid == uid));
        let ended = workers
            .iter()
            .filter(|(_, member)| member.life == Life::Ended && !member.terminating);
        ended
            .filter(|(_, member)| memory.is_new_end(&member.uid))
            .count()
    });
    if fresh > 0 {
        context.replacements.failed(key, now.monotonic);
    }
}

/// Whether the cache shows our own last writes for this deployment.
///
/// # Errors
/// When the API server has to be asked and does not answer.
pub async fn caught_up(key: &Key, context: &Context) -> Result<bool, EffectError> {
    let world = &context.world;
    let unseen = world.worker_writes.unseen(key, |pending| {
        let reference = ObjectRef::new(&pending.object.name).within(&pending.object.namespace);
        let found = world.workers.get(&reference);
        let same = found
            .as_ref()
            .filter(|worker| worker.uid().as_deref() == Some(&pending.uid));
        match pending.expected {
            Expected::Created => same.is_some(),
            Expected::Deleted => {
                same.is_none_or(|worker| worker.meta().deletion_timestamp.is_some())
            }
        }
    });
    let now = shell::clock::now();
    let mut waiting = false;
    for pending in unseen {
        if pending.is_overdue(now) {
            let found: Option<LlavaWorker> = context.effects.get(&pending.object).await?;
            let same = found.filter(|worker| worker.uid().as_deref() == Some(&pending.uid));
            let ending = same.is_none_or(|worker| worker.metadata.deletion_timestamp.is_some());
            if !pending.is_to_come(ending, now) {
                world.worker_writes.saw(key, &pending.uid, true);
                continue;
            }
        }
        waiting = true;
    }
    Ok(!waiting)
}
