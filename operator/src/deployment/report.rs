//! A deployment's status (pure), from what was observed and applied.

use std::time::Duration;

use crds::LlavaDeploymentStatus;
use crds::condition::{deployment as kind, reason};
use crds::name::{WORKER, label};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use super::apply::Applied;
use super::check::{Checked, Refusal};
use super::observe::Observed;
use super::plan::{Goal, Member};
use super::progress::Reach;
use super::worst::{Worst, worst};
use crate::conditions::{Conditions, Truth};
use crate::settings::Settings;

/// Numbers of workers after what was applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    live: usize,
    updated: usize,
    available: usize,
}

/// How far the rollout is after what was applied.
#[must_use]
pub fn reach(observed: &Observed, goal: &Goal, applied: &Applied) -> Reach {
    let counts = count(observed, goal, applied);
    Reach {
        updated: counts.updated,
        old: counts.live.saturating_sub(counts.updated),
        available: counts.available,
    }
}

/// The status of a deployment that cannot be worked with.
#[must_use]
pub fn refused(observed: &Observed, refusal: &Refusal) -> LlavaDeploymentStatus {
    let before = observed.deployment.status.clone().unwrap_or_default();
    let generation = observed.deployment.metadata.generation;
    let mut conditions = Conditions::new(&before.conditions, generation, &observed.now);
    let available = observed.workers.iter().any(|(_, member)| member.available);
    conditions.set(
        kind::AVAILABLE,
        Truth::from(available),
        refusal.reason,
        &refusal.message,
    );
    conditions.set(
        kind::PROGRESSING,
        Truth::False,
        refusal.reason,
        &refusal.message,
    );
    conditions.set(
        kind::DEGRADED,
        Truth::True,
        refusal.reason,
        &refusal.message,
    );
    LlavaDeploymentStatus {
        observed_generation: generation,
        summary: Some(refusal.reason.to_owned()),
        conditions: conditions.finish(),
        ..before
    }
}

/// The status that tells what is known now, and when the progress deadline has to be looked at.
/// The rollout came further for the last time at `last_progress`.
#[must_use]
pub fn status(
    observed: &Observed,
    checked: &Checked,
    goal: &Goal,
    delete_first: bool,
    applied: &Applied,
    settings: &Settings,
    last_progress: Time,
) -> (LlavaDeploymentStatus, Option<Duration>) {
    let before = observed.deployment.status.clone().unwrap_or_default();
    let counts = count(observed, goal, applied);
    let worst = worst(observed, applied);
    let replicas = goal.replicas;
    let complete =
        counts.updated == replicas && counts.live == replicas && counts.available == replicas;
    let int = |figure: usize| i32::try_from(figure).unwrap_or(i32::MAX);
    let update = Some(goal.revision.clone());
    let standing = observed.now.wall.duration_since(last_progress.0);
    let standing = Duration::try_from(standing).unwrap_or_default();
    let overdue = !complete && standing >= checked.progress_deadline;

    let old = counts.live > counts.updated;
    let settled = complete
        || (progressing(&before) == Some(reason::COMPLETE)
            && before.update_revision == update
            && before.desired_replicas == int(replicas)
            && !old);
    let (truth, word) = if checked.paused && old {
        (Truth::Unknown, reason::PAUSED)
    } else if settled {
        (Truth::True, reason::COMPLETE)
    } else if overdue {
        (Truth::False, reason::PROGRESS_DEADLINE_EXCEEDED)
    } else if old {
        (Truth::True, reason::UPDATING)
    } else {
        (Truth::True, reason::SCALING)
    };
    let enough = counts.available >= goal.enough();
    let cause = worst.as_ref().filter(|worst| worst.notable);
    let numbers = format!(
        "{} of {replicas} workers answer, {} have the template of the spec",
        counts.available, counts.updated
    );
    let explained = match &worst {
        Some(worst) => format!("{numbers}; {}", worst.message),
        None => numbers.clone(),
    };
    let one_by_one = delete_first || (goes_delete_first(Some(&before)) && !complete);
    // What the rollout itself brings about is no news.
    let expected = |worst: &&Worst| !(one_by_one && worst.reason == reason::UNSCHEDULABLE);
    let cause = cause.filter(expected);
    let summary = summary(
        replicas,
        counts,
        complete,
        word,
        enough,
        worst.as_ref().filter(expected),
    );

    let generation = observed.deployment.metadata.generation;
    let mut conditions = Conditions::new(&before.conditions, generation, &observed.now);
    conditions.set(
        kind::AVAILABLE,
        Truth::from(enough),
        match (enough, replicas, &worst) {
            (true, 0, _) => reason::SCALED_TO_ZERO,
            (true, ..) if counts.available >= replicas => reason::READY,
            (true, ..) => reason::WORKERS_MISSING,
            (false, _, Some(worst)) => &worst.reason,
            (false, ..) => reason::SCALING,
        },
        if counts.available >= replicas {
            &numbers
        } else {
            &explained
        },
    );
    let standing_still = match word {
        reason::PROGRESS_DEADLINE_EXCEEDED => {
            format!(
                "no progress for {} s; {explained}",
                checked.progress_deadline.as_secs()
            )
        }
        reason::COMPLETE => "all workers have the template of the spec".to_owned(),
        reason::PAUSED => {
            "spec.rollout.paused holds the rollout; set it to false to go on".to_owned()
        }
        _ => explained.clone(),
    };
    conditions.set(kind::PROGRESSING, truth, word, &standing_still);
    match cause {
        Some(worst) => conditions.set(kind::DEGRADED, Truth::True, &worst.reason, &worst.message),
        None => conditions.set(kind::DEGRADED, Truth::False, reason::HEALTHY, ""),
    }
    if one_by_one {
        conditions.set(
            kind::DELETE_FIRST,
            Truth::True,
            reason::NO_ROOM_FOR_SURGE,
            "no node has room for a further worker, so that old workers go one at a time before their successors come",
        );
    } else {
        conditions.set(kind::DELETE_FIRST, Truth::False, reason::WITHIN_BOUNDS, "");
    }

    let status = LlavaDeploymentStatus {
        observed_generation: generation,
        model: checked.template.model.name.clone(),
        desired_replicas: int(replicas),
        replicas: int(counts.live),
        ready_replicas: int(counts.available),
        updated_replicas: int(counts.updated),
        available_replicas: int(counts.available),
        selector: Some(format!(
            "{}={WORKER},{}={}",
            label::NAME,
            label::DEPLOYMENT,
            observed.key.name
        )),
        current_revision: current_revision(observed, goal, complete, before.current_revision),
        update_revision: update,
        image: checked.template.pod.image.clone(),
        queue_length: int(observed.waiting)
            .saturating_add(i32::try_from(observed.demand.waiting).unwrap_or(i32::MAX)),
        running_requests: int(observed.running),
        url: settings
            .url
            .as_ref()
            .map(|base| format!("{}/v1", base.trim_end_matches('/'))),
        summary: Some(summary),
        last_progress_time: Some(last_progress),
        conditions: conditions.finish(),
    };
    let deadline = (!settled && !overdue && !checked.paused)
        .then(|| checked.progress_deadline.saturating_sub(standing) + Duration::from_millis(100));
    (status, deadline)
}

/// Whether the rollout under way replaces workers one by one for want of room.
#[must_use]
pub fn goes_delete_first(status: Option<&LlavaDeploymentStatus>) -> bool {
    status
        .and_then(|status| condition(status, kind::DELETE_FIRST))
        .is_some_and(|condition| condition.status == "True")
}

fn progressing(status: &LlavaDeploymentStatus) -> Option<&str> {
    condition(status, kind::PROGRESSING).map(|condition| condition.reason.as_str())
}

/// A condition of the status.
pub(super) fn condition<'a>(
    status: &'a LlavaDeploymentStatus,
    kind: &str,
) -> Option<&'a Condition> {
    status
        .conditions
        .iter()
        .find(|condition| condition.type_ == kind)
}

fn count(observed: &Observed, goal: &Goal, applied: &Applied) -> Counts {
    let left = |member: &&Member| member.counts() && !applied.deleted.contains(&member.uid);
    let mut counts = Counts::default();
    for member in observed
        .workers
        .iter()
        .map(|(_, member)| member)
        .filter(left)
    {
        counts.live += 1;
        counts.updated += usize::from(member.revision == goal.revision);
        counts.available += usize::from(member.available);
    }
    for worker in &applied.created {
        counts.live += 1;
        counts.updated += usize::from(worker.spec.revision == goal.revision);
    }
    counts
}

/// One word on how it stands.
fn summary(
    replicas: usize,
    counts: Counts,
    complete: bool,
    progress: &str,
    enough: bool,
    worst: Option<&Worst>,
) -> String {
    let cause = worst
        .filter(|worst| worst.notable)
        .map(|worst| worst.reason.as_str());
    let word = if replicas == 0 && counts.live == 0 {
        reason::SCALED_TO_ZERO
    } else if complete {
        cause.unwrap_or(reason::READY)
    } else if let Some(cause) = cause {
        cause
    } else if progress == reason::COMPLETE {
        reason::WORKERS_MISSING
    } else if enough || counts.available > 0 {
        progress
    } else {
        worst.map_or(progress, |worst| worst.reason.as_str())
    };
    word.to_owned()
}

/// The revision that was last rolled out completely, as far as workers still show it.
fn current_revision(
    observed: &Observed,
    goal: &Goal,
    complete: bool,
    before: Option<String>,
) -> Option<String> {
    if complete {
        return Some(goal.revision.clone());
    }
    let live = || {
        observed
            .workers
            .iter()
            .map(|(_, member)| member)
            .filter(|member| member.counts())
    };
    let count = |revision: &str| live().filter(|member| member.revision == revision).count();
    before.filter(|revision| count(revision) > 0).or_else(|| {
        live()
            .map(|member| &member.revision)
            .filter(|revision| **revision != goal.revision)
            .max_by_key(|revision| (count(revision), revision.as_str()))
            .cloned()
    })
}
