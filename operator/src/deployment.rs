//! The controller of LlavaDeployments: observe, check, plan, apply, report.

pub mod apply;
pub mod check;
pub mod child;
pub mod memory;
pub mod news;
pub mod observe;
pub mod plan;
pub mod progress;
pub mod refusal;
pub mod report;
pub mod scale;
mod worst;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crds::name::{FIELD_MANAGER, WORKER, label};
use crds::worker::LlavaWorkerSpec;
use crds::{LlavaDeployment, LlavaDeploymentStatus, LlavaWorker};
use k8s_openapi::api::networking::v1::NetworkPolicySpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{OwnerReference, Time};
use kube::core::ObjectMeta;
use kube::{Resource, ResourceExt};

use self::apply::{Applied, Planned};
use self::check::{Checked, Wish, share};
use self::observe::Observed;
use self::plan::{Goal, Member, Plan};
use self::progress::Aim;
use self::refusal::Refused;
use self::scale::Reading;
use crate::context::Context;
use crate::effects::EffectError;
use crate::key::Key;
use crate::outcome::Outcome;
use crate::pace::{Change, Verdict};
use crate::revision::worker_name;
use crate::step::{Step, StepError};

/// Name of the kind in metrics.
pub const KIND: &str = "LlavaDeployment";

/// When to look again at what no event tells of.
const WAIT: Duration = Duration::from_secs(1);

/// A reconciliation that has to be tried again.
#[derive(Debug, thiserror::Error)]
pub enum DeploymentError {
    /// The API server could not be asked, or refused a status.
    #[error(transparent)]
    Effect(#[from] EffectError),
    /// A child could not be written.
    #[error(transparent)]
    Step(#[from] StepError),
}

/// Brings one deployment's workers to be, and tells how it goes.
///
/// # Errors
/// When it has to be tried again.
pub async fn reconcile(
    deployment: Arc<LlavaDeployment>,
    context: &Context,
) -> Result<Outcome, DeploymentError> {
    let key = Key::of(&*deployment);
    if deployment.metadata.deletion_timestamp.is_some() {
        context.forget(&key);
        return Ok(Outcome::Done(None));
    }
    if context.is_behind(&*deployment) || !observe::caught_up(&key, context).await? {
        context.metrics.stale_sync(KIND);
        return Ok(Outcome::Behind(WAIT));
    }
    let observed = observe::observe(deployment, context); // stores
    let checked = match check::check(&observed.deployment, &context.settings) {
        Ok(checked) => checked, // pure
        Err(refusal) => {
            let status = report::refused(&observed, &refusal);
            let later = tell(&observed, &status, context).await?;
            return Ok(Outcome::Done(later));
        }
    };
    let goal = goal(&observed, &checked, context);
    let members: Vec<Member> = observed
        .workers
        .iter()
        .map(|(_, member)| member.clone())
        .collect();
    let plan = plan::plan(&members, &goal); // pure
    let rules = context.settings.worker_network_policy.as_ref();
    let rushed = context.effects.are_busy();
    let mut planned = children(&observed, &checked, &goal, &plan, rules, rushed); // pure
    let unguarded = observed.children.budget.is_none() && planned.budget == Step::Keep;
    let unguarded = (unguarded && answering(&observed) > 0).then_some(WAIT);
    let held = hold(&mut planned, &observed, context);
    let mut applied = apply::apply(
        planned,
        &observed.deployment,
        &context.world,
        &context.effects,
    )
    .await; // client
    let held = remember(held, &mut applied, &observed, context);
    let last_progress = progressed(&observed, &goal, &applied, context);
    let (status, deadline) = report::status(
        &observed,
        &checked,
        &goal,
        plan.delete_first,
        &applied,
        &context.settings,
        last_progress,
    ); // pure
    let later = tell(&observed, &status, context).await?; // client
    match applied.error {
        Some(error) if error.is_gone() => return Ok(Outcome::Done(None)),
        Some(error) => return Err(error.into()),
        None => {}
    }
    let scaled = matches!(checked.wish, Wish::Auto(_)).then_some(scale::PERIOD);
    let waits = applied.wait.then_some(WAIT);
    let all = [plan.again, deadline, later, scaled, waits, held, unguarded];
    Ok(Outcome::Done(all.into_iter().flatten().min()))
}

/// Makes no workers while a refusal holds; returns it.
fn hold(
    planned: &mut Planned,
    observed: &Observed,
    context: &Context,
) -> Option<(Refused, Duration)> {
    context.with_memory(&observed.key, |memory| {
        if planned.create.is_empty() {
            memory.refusals.clear();
            return None;
        }
        let generation = observed.deployment.metadata.generation;
        let held = memory
            .refusals
            .standing(generation, observed.now.monotonic)?;
        planned.create.clear();
        Some(held)
    })
}

/// Notes what became of the workers to be made; returns how long a refusal holds that
/// was not asked about again.
fn remember(
    held: Option<(Refused, Duration)>,
    applied: &mut Applied,
    observed: &Observed,
    context: &Context,
) -> Option<Duration> {
    if let Some((refused, rest)) = held {
        applied.refused = Some(refused);
        return Some(rest);
    }
    let generation = observed.deployment.metadata.generation;
    context.with_memory(&observed.key, |memory| match &applied.refused {
        Some(refused) => {
            let now = shell::clock::now();
            memory.refusals.note(refused.clone(), generation, now);
        }
        None if !applied.created.is_empty() => memory.refusals.clear(),
        None => {}
    });
    None
}

/// When the rollout last came further.
fn progressed(observed: &Observed, goal: &Goal, applied: &Applied, context: &Context) -> Time {
    let aim = Aim {
        uid: observed.deployment.metadata.uid.clone(),
        generation: observed.deployment.metadata.generation,
        revision: goal.revision.clone(),
        replicas: goal.replicas,
    };
    let reach = report::reach(observed, goal, applied); // pure
    let told = observed.deployment.status.as_ref();
    context.with_memory(&observed.key, |memory| {
        memory.progress.note(aim, reach, told, observed.now.time())
    })
}

/// What is wished for now.
fn goal(observed: &Observed, checked: &Checked, context: &Context) -> Goal {
    let replicas = match &checked.wish {
        Wish::Fixed(replicas) => {
            context.with_memory(&observed.key, |memory| {
                memory.scaler = scale::Scaler::default();
            });
            *replicas
        }
        Wish::Auto(rules) => {
            let reading = reading(observed);
            context.with_memory(&observed.key, |memory| {
                memory.scaler.decide(reading, rules, observed.now.monotonic)
            })
        }
    };
    let surge = share(&checked.max_surge, replicas, true);
    let unavailable = share(&checked.max_unavailable, replicas, false).min(replicas);
    Goal {
        replicas,
        surge,
        // As for a Deployment: percentages of few workers may both round to nothing.
        unavailable: if surge == 0 {
            unavailable.max(1)
        } else {
            unavailable
        },
        revision: checked.revision.clone(),
        paused: checked.paused,
        patience: if report::goes_delete_first(observed.deployment.status.as_ref()) {
            // One shortage was waited for already in this rollout.
            Duration::ZERO
        } else {
            context.settings.surge_patience
        },
        replace_in: observed.replace_in,
        taken: observed.taken.clone(),
    }
}

fn reading(observed: &Observed) -> Reading {
    let live = observed
        .workers
        .iter()
        .filter(|(_, member)| member.counts());
    let available = live.clone().filter(|(_, member)| member.available).count();
    let current = match &observed.deployment.status {
        Some(status) => usize::try_from(status.desired_replicas).unwrap_or_default(),
        None => live.count(),
    };
    let count = |figure| usize::try_from(figure).unwrap_or(usize::MAX);
    let at_workers = observed.waiting.saturating_add(observed.running);
    Reading {
        requests: at_workers
            .max(count(observed.demand.in_flight))
            .saturating_add(count(observed.demand.waiting)),
        current,
        pending: current.saturating_sub(available),
    }
}

/// Workers that answer.
fn answering(observed: &Observed) -> usize {
    let members = observed.workers.iter().map(|(_, member)| member);
    members.filter(|member| member.available).count()
}

/// The plan in objects.
fn children(
    observed: &Observed,
    checked: &Checked,
    goal: &Goal,
    plan: &Plan,
    rules: Option<&NetworkPolicySpec>,
    rushed: bool,
) -> Planned {
    let deployment = &*observed.deployment;
    let uid = deployment.uid().unwrap_or_default();
    let found = &observed.children;
    let name =
        |create: &plan::Create| worker_name(&observed.key.name, &create.revision, create.ordinal);
    let existing = observed
        .workers
        .iter()
        .map(|(_, member)| member.name.clone());
    let mut leases: Vec<String> = existing.chain(plan.create.iter().map(name)).collect();
    leases.sort_unstable();
    leases.dedup();
    let answering = answering(observed);
    let enough = answering > 0 && answering >= goal.enough();
    let templates = observed
        .workers
        .iter()
        .map(|(worker, _)| &worker.spec.template);
    let accounts: BTreeSet<&str> = templates
        .chain([&checked.template])
        .filter_map(|template| template.pod.service_account_name.as_deref())
        .collect();
    Planned {
        account: checked.own_account.then(|| {
            Step::towards(
                child::account::account(deployment),
                found.account.as_deref(),
                &uid,
            )
        }),
        role: Step::towards(
            child::role::role(deployment, &leases),
            found.role.as_deref(),
            &uid,
        ),
        binding: Step::towards(
            child::binding::binding(deployment, &accounts),
            found.binding.as_deref(),
            &uid,
        ),
        // Every change of a worker makes Kubernetes write the Endpoints and EndpointSlices of its
        // Service and the status of its budget anew, so neither is there before it has a use. The
        // Service is for people alone: it is there when the status says that the workers answer.
        // The budget guards the first that answers, except that it gives way while calls wait.
        service: if found.service.is_some() || enough {
            Step::towards(
                child::service::service(deployment),
                found.service.as_deref(),
                &uid,
            )
        } else {
            Step::Keep
        },
        budget: if found.budget.is_some() || enough || (answering > 0 && !rushed) {
            Step::towards(
                child::budget::budget(deployment, goal.replicas, goal.unavailable),
                found.budget.as_deref(),
                &uid,
            )
        } else {
            Step::Keep
        },
        policy: match rules {
            Some(rules) => Step::towards(
                child::policy::policy(deployment, rules),
                found.policy.as_deref(),
                &uid,
            ),
            None => Step::without(found.policy.as_deref(), &uid),
        },
        create: plan
            .create
            .iter()
            .filter_map(|create| worker(observed, checked, create, &name(create)))
            .collect(),
        delete: plan.delete.clone(),
    }
}

/// A new worker. That of an older revision, while a rollout is held, has the
/// template of its siblings.
fn worker(
    observed: &Observed,
    checked: &Checked,
    create: &plan::Create,
    name: &str,
) -> Option<LlavaWorker> {
    let template = if create.revision == checked.revision {
        checked.template.clone()
    } else {
        let mut siblings = observed.workers.iter().map(|(worker, _)| &worker.spec);
        siblings
            .find(|spec| spec.revision == create.revision)?
            .template
            .clone()
    };
    let deployment = &*observed.deployment;
    let labels = [
        (label::NAME, WORKER),
        (label::INSTANCE, &observed.key.name),
        (label::MANAGED_BY, FIELD_MANAGER),
        (label::DEPLOYMENT, &observed.key.name),
        (label::REVISION, &create.revision),
    ];
    Some(LlavaWorker {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(observed.key.namespace.clone()),
            labels: Some(
                labels
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .into(),
            ),
            owner_references: Some(vec![OwnerReference {
                api_version: LlavaDeployment::api_version(&()).into_owned(),
                kind: LlavaDeployment::kind(&()).into_owned(),
                name: observed.key.name.clone(),
                uid: deployment.uid().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            }]),
            ..ObjectMeta::default()
        },
        spec: LlavaWorkerSpec {
            deployment: observed.key.name.clone(),
            revision: create.revision.clone(),
            template,
        },
        status: None,
    })
}

/// Writes the status when that is worth it, then the Events that go with it.
async fn tell(
    observed: &Observed,
    status: &LlavaDeploymentStatus,
    context: &Context,
) -> Result<Option<Duration>, EffectError> {
    let deployment = &observed.deployment;
    let uid = deployment.uid().unwrap_or_default();
    let before = deployment.status.as_ref();
    let now = observed.now.monotonic;
    let change = news::change(before, status);
    let busy = context.effects.are_busy();
    match context.paces.judge(&uid, change, busy, now) {
        Verdict::Same => Ok(None),
        Verdict::Later(wait) => Ok(Some(wait)),
        Verdict::Write => {
            let mut told = LlavaDeployment::clone(deployment);
            told.status = Some(status.clone());
            match context.effects.report(&told, change == Change::News).await {
                Ok(written) => context.wrote_status(&written, now),
                // The newer version has an event of its own.
                Err(error) if error.is_conflict() => {
                    context.metrics.stale_sync(KIND);
                    return Ok(None);
                }
                Err(error) if error.is_gone() => return Ok(None),
                Err(error) => return Err(error),
            }
            for event in news::events(before, status) {
                context.effects.tell(&**deployment, event).await;
            }
            Ok(None)
        }
    }
}
