//! Carries out a deployment's plan (client). What the Pods need comes first:
//! their identity, its rights, their names; then workers, in batches that double
//! (1, 2, 4, …), so that a quota or a webhook that says no costs one call.

use crds::condition::reason;
use crds::{LlavaDeployment, LlavaWorker};
use futures::future::join_all;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::{Resource, ResourceExt};
use serde_json::Value;

use super::plan::Delete;
use crate::effects::{EffectError, Effects, Object};
use crate::expectations::Expected;
use crate::key::Key;
use crate::subset;
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
    /// Workers to create.
    pub create: Vec<LlavaWorker>,
    /// Workers to delete.
    pub delete: Vec<Delete>,
}

/// What happens to one child.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// It is as it should be.
    Keep,
    /// It does not exist.
    Create(Value),
    /// It differs.
    Apply(Value),
    /// One of an earlier deployment of this name is still being removed.
    Wait,
}

impl Step {
    /// Compares what exists with what should.
    pub fn towards<K: Object>(wanted: Value, found: Option<&K>, owner: &str) -> Self {
        match found {
            None => Self::Create(wanted),
            Some(found) if !is_owned(found, owner) => Self::Wait,
            Some(found) if subset::holds(&wanted, found) => Self::Keep,
            Some(_) => Self::Apply(wanted),
        }
    }
}

/// What a deployment's reconciliation did.
#[derive(Debug, Default)]
pub struct Applied {
    /// Workers that were created.
    pub created: Vec<LlavaWorker>,
    /// UIDs of workers that were deleted.
    pub deleted: Vec<String>,
    /// Whether something has to be waited for without an event.
    pub wait: bool,
    /// What stopped it.
    pub error: Option<ApplyError>,
}

/// A write that did not happen.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The API server refused or did not answer.
    #[error(transparent)]
    Effect(#[from] EffectError),
    /// Somebody else's object has the name.
    #[error("{kind} {key} exists and does not belong to this LlavaDeployment; delete or rename it")]
    NameTaken {
        /// Its kind.
        kind: String,
        /// Its name.
        key: Key,
    },
    /// A child of ours is not what Kubernetes takes.
    #[error("cannot build {kind} {key}: {source}")]
    Build {
        /// Its kind.
        kind: String,
        /// Its name.
        key: Key,
        /// Why.
        source: serde_json::Error,
    },
}

impl ApplyError {
    /// One word for conditions.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NameTaken { .. } => reason::NAME_TAKEN,
            Self::Effect(_) | Self::Build { .. } => reason::CREATE_REFUSED,
        }
    }

    /// Whether the namespace or the deployment itself is going away.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        matches!(self, Self::Effect(error) if error.is_gone())
    }
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
) -> Result<(), ApplyError> {
    let Planned {
        account,
        role,
        binding,
        service,
        budget,
        create,
        delete,
    } = planned;
    let key = Key::of(deployment);
    let owner = deployment.uid().unwrap_or_default();
    let child = Key::new(&key.namespace, crds::name::child_name(&key.name));
    let done = [
        settle::<ServiceAccount>(account.unwrap_or(Step::Keep), &child, &owner, effects).await?,
        settle::<Role>(role, &child, &owner, effects).await?,
        settle::<RoleBinding>(binding, &child, &owner, effects).await?,
        settle::<Service>(service, &child, &owner, effects).await?,
        settle::<PodDisruptionBudget>(budget, &child, &owner, effects).await?,
    ];
    if done.contains(&false) {
        applied.wait = true;
        return Ok(());
    }
    start(&create, &key, world, effects, applied).await?;
    for Delete { name, uid } in delete {
        let worker = Key::new(&key.namespace, name);
        effects.delete::<LlavaWorker>(&worker, &uid, true).await?;
        let now = shell::clock::now();
        world
            .worker_writes
            .wrote(&key, worker, &uid, Expected::Deleted, now);
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
) -> Result<(), ApplyError> {
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

/// Brings one child to its wish; false when it has to be waited for.
async fn settle<K: Object>(
    step: Step,
    key: &Key,
    owner: &str,
    effects: &Effects,
) -> Result<bool, ApplyError> {
    let kind = || K::kind(&()).to_string();
    match step {
        Step::Keep => Ok(true),
        Step::Wait => Ok(false),
        Step::Apply(wanted) => {
            effects.apply::<K>(key, &wanted).await?;
            Ok(true)
        }
        Step::Create(wanted) => {
            let object: K = serde_json::from_value(wanted).map_err(|source| ApplyError::Build {
                kind: kind(),
                key: key.clone(),
                source,
            })?;
            match effects.create(&object).await {
                Ok(_) => Ok(true),
                Err(error) if error.is_already_exists() => match effects.get::<K>(key).await? {
                    Some(found) if is_owned(&found, owner) => Ok(true),
                    Some(found) if found.meta().deletion_timestamp.is_some() => Ok(false),
                    Some(found) if found.owner_references().is_empty() => {
                        Err(ApplyError::NameTaken {
                            kind: kind(),
                            key: key.clone(),
                        })
                    }
                    // Of an earlier deployment of this name: the garbage collector has it.
                    _ => Ok(false),
                },
                Err(error) => Err(error.into()),
            }
        }
    }
}

fn is_owned<K: Resource>(object: &K, owner: &str) -> bool {
    object
        .owner_references()
        .iter()
        .any(|reference| reference.controller == Some(true) && reference.uid == owner)
}
