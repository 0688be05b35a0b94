//! Carries out a deployment's plan (client). What the Pods need comes first:
//! their identity, its rights, their names; then workers, in batches that double
//! (1, 2, 4, …), so that a quota or a webhook that says no costs one call.

use crds::{LlavaDeployment, LlavaWorker};
use futures::{future::join_all, try_join};
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::ResourceExt;

use super::plan::Delete;
use super::refusal::Refused;
use crate::effects::Effects;
use crate::expectations::Expected;
use crate::key::Key;
use crate::step::{Step, StepError, settle};
use crate::world::World;

/// Everything that a deployment's reconciliation is about to do.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The ServiceAccount, unless it is a user's own.
    pub account: Option<Step>,
    /// The Role.
    pub role: Step,
    /// The RoleBinding.
    pub binding: Step,
    /// The Service.
    pub service: Step,
    /// The PodDisruptionBudget.
    pub budget: Step,
    /// The NetworkPolicy.
    pub policy: Step,
    /// Workers to create.
    pub create: Vec<LlavaWorker>,
    /// Workers to delete.
    pub delete: Vec<Delete>,
}

/// What a deployment's reconciliation did.
#[derive(Debug, Default)]
pub struct Applied {
    /// Workers that were created.
    pub created: Vec<LlavaWorker>,
    /// UIDs of workers that were deleted.
    pub deleted: Vec<String>,
    /// Why workers were not made, now or not yet again.
    pub refused: Option<Refused>,
    /// Whether something has to be waited for without an event.
    pub wait: bool,
    /// What stopped it.
    pub error: Option<StepError>,
}

/// Acts, up to the first failure.
pub async fn apply(
    planned: Planned,
    deployment: &LlavaDeployment,
    world: &World,
    effects: &Effects,
) -> Applied {
    let mut applied = Applied::default();
    if let Err(error) = steps(planned, deployment, world, effects, &mut applied).await {
        applied.error = Some(error);
    }
    applied
}

async fn steps(
    planned: Planned,
    deployment: &LlavaDeployment,
    world: &World,
    effects: &Effects,
    applied: &mut Applied,
) -> Result<(), StepError> {
    let Planned {
        account,
        role,
        binding,
        service,
        budget,
        policy,
        create,
        delete,
    } = planned;
    let key = Key::of(deployment);
    let uid = deployment.uid().unwrap_or_default();
    let owner = ("LlavaDeployment", uid.as_str());
    let child = Key::new(&key.namespace, crds::name::child_name(&key.name));
    // A binding to a Role that is not there yet would be refused; the others need nothing.
    let role = settle::<Role>(role, &child, owner, effects).await?;
    let done = try_join!(
        settle::<ServiceAccount>(account.unwrap_or(Step::Keep), &child, owner, effects),
        settle::<RoleBinding>(binding, &child, owner, effects),
        settle::<Service>(service, &child, owner, effects),
        settle::<PodDisruptionBudget>(budget, &child, owner, effects),
        settle::<NetworkPolicy>(policy, &child, owner, effects),
    )?;
    let (account, binding, service, budget, policy) = done;
    if !(role && account && binding && service && budget && policy) {
        applied.wait = true;
        return Ok(());
    }
    if let Err(error) = start(&create, &key, world, effects, applied).await {
        let said = error.for_people().filter(|_| !error.is_gone());
        applied.refused = said.map(|message| Refused {
            reason: error.reason(),
            message,
        });
        return Err(error);
    }
    for Delete { name, uid } in delete {
        let worker = Key::new(&key.namespace, name);
        let deleted = effects.delete::<LlavaWorker>(&worker, &uid, true).await;
        let (writes, now) = (&world.worker_writes, shell::clock::now());
        match &deleted {
            Ok(()) => writes.wrote(&key, worker, &uid, Expected::Deleted, now),
            // A plan that does not know of it might choose another worker beside this one.
            Err(error) if error.leaves_doubt() => {
                writes.doubted(&key, worker, &uid, Expected::Deleted, now);
            }
            Err(_) => {}
        }
        deleted?;
        applied.deleted.push(uid);
    }
    Ok(())
}

/// Creates workers in batches of 1, 2, 4, … until one fails.
async fn start(
    create: &[LlavaWorker],
    parent: &Key,
    world: &World,
    effects: &Effects,
    applied: &mut Applied,
) -> Result<(), StepError> {
    let mut rest = create;
    let mut batch = 1;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(batch.min(rest.len()));
        let results = join_all(now.iter().map(|worker| effects.create(worker))).await;
        let mut failure = None;
        for result in results {
            match result {
                Ok(worker) => {
                    let uid = worker.uid().unwrap_or_default();
                    let seen = shell::clock::now();
                    world.worker_writes.wrote(
                        parent,
                        Key::of(&worker),
                        &uid,
                        Expected::Created,
                        seen,
                    );
                    applied.created.push(worker);
                }
                // The cache lags behind, or a worker was made by hand; either shows soon.
                Err(error) if error.is_already_exists() => applied.wait = true,
                Err(error) => failure = Some(error),
            }
        }
        if let Some(error) = failure {
            return Err(error.into());
        }
        rest = later;
        batch *= 2;
    }
    Ok(())
}
