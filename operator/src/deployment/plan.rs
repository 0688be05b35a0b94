//! Which workers come and which go (pure). The bounds hold at every single
//! write: creations stop at wish + surge, and no available worker is deleted
//! below wish - unavailable, except one at a time when no node has room for a
//! surge worker, which [`Plan::delete_first`] says.

use std::time::Duration;

use crate::worker::life::Life;

/// One worker as the planner sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its template's hash.
    pub revision: String,
    /// The number in its name.
    pub ordinal: u32,
    /// Where it stands.
    pub life: Life,
    /// Whether it answers and stays.
    pub available: bool,
    /// Requests it has.
    pub queue: u32,
    /// For how long no node had room for it.
    pub without_room: Option<Duration>,
    /// Whether somebody has asked for its deletion already.
    pub terminating: bool,
    /// Whether its status says why it ended. Until then it stays: with the object goes
    /// the only place where the cause can be told.
    pub told: bool,
    /// Whether its Pod runs and was not told to end. That of a deleted worker
    /// hears of it a moment later, and until then it takes a place.
    pub pod_lives: bool,
}

impl Member {
    /// Whether it counts as a replica.
    #[must_use]
    pub fn counts(&self) -> bool {
        matches!(self.life, Life::Unborn | Life::Live | Life::Unseen)
    }
}

/// What is wished for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goal {
    /// Workers.
    pub replicas: usize,
    /// Workers above that during a rollout.
    pub surge: usize,
    /// Workers below that during a rollout.
    pub unavailable: usize,
    /// The revision of the spec.
    pub revision: String,
    /// Whether the rollout is held.
    pub paused: bool,
    /// How long a surge worker may find no room.
    pub patience: Duration,
    /// How long to wait still before an ended worker is replaced.
    pub replace_in: Duration,
    /// Names that no new worker may have although no worker has them.
    pub taken: Vec<String>,
}

impl Goal {
    /// The fewest workers that must answer for the deployment to be available.
    #[must_use]
    pub fn enough(&self) -> usize {
        let fewest = self.replicas.saturating_sub(self.unavailable);
        fewest.max(usize::from(self.replicas > 0))
    }
}

/// A worker to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Create {
    /// Whose template it has.
    pub revision: String,
    /// The number in its name.
    pub ordinal: u32,
}

/// A worker to delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delete {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// What is to be done now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Workers to create.
    pub create: Vec<Create>,
    /// Workers to delete.
    pub delete: Vec<Delete>,
    /// Whether an old worker goes before its successor because no node has room for both.
    pub delete_first: bool,
    /// When to look again without an event.
    pub again: Option<Duration>,
}

/// Decides.
#[must_use]
pub fn plan(members: &[Member], goal: &Goal) -> Plan {
    let mut plan = Plan::default();
    let ended: Vec<_> = members
        .iter()
        .filter(|member| member.life == Life::Ended)
        .collect();
    let live: Vec<_> = members.iter().filter(|member| member.counts()).collect();
    // Somebody else deleted the Pod, or a node was drained: the worker goes with it.
    let stray = |member: &&Member| member.life == Life::Leaving && !member.terminating;
    plan.delete.extend(members.iter().filter(stray).map(delete));
    let held = if goal.replace_in.is_zero() {
        0
    } else {
        ended.len()
    };
    if held == 0 {
        plan.delete.extend(
            ended
                .iter()
                .filter(|member| member.told && !member.terminating)
                .map(|member| delete(member)),
        );
    } else {
        plan.again = Some(goal.replace_in);
    }
    let Some(revision) = target(&live, goal) else {
        return plan;
    };
    let (new, old): (Vec<&Member>, Vec<&Member>) = live
        .iter()
        .copied()
        .partition(|member| member.revision == revision || goal.paused);
    let most = goal.replicas + if old.is_empty() { 0 } else { goal.surge };
    let wanted = goal.replicas.saturating_sub(new.len()).saturating_sub(held);
    let lingering = members
        .iter()
        .filter(|member| member.life == Life::Leaving && member.pod_lives)
        .count();
    let room = most.saturating_sub(live.len() + lingering);
    plan.create = free_ordinals(members, goal, &revision)
        .take(wanted.min(room))
        .map(|ordinal| Create {
            revision: revision.clone(),
            ordinal,
        })
        .collect();
    retire(&new, &old, goal, &mut plan);
    plan
}

/// The revision that new workers have. A held rollout goes on with the one that
/// most workers have.
fn target(live: &[&Member], goal: &Goal) -> Option<String> {
    if !goal.paused {
        return Some(goal.revision.clone());
    }
    let count = |revision: &str| {
        live.iter()
            .filter(|member| member.revision == revision)
            .count()
    };
    live.iter()
        .map(|member| &member.revision)
        .max_by_key(|revision| {
            (
                count(revision),
                *revision == &goal.revision,
                revision.as_str(),
            )
        })
        .cloned()
}

/// Workers that are too many or too old.
fn retire(new: &[&Member], old: &[&Member], goal: &Goal, plan: &mut Plan) {
    let answering = |members: &[&Member]| members.iter().filter(|member| member.available).count();
    let floor = floor(new, old, goal, plan);
    let mut available = answering(new) + answering(old);
    let mut live = new.len() + old.len();

    // New ones beyond the wish go whatever the bounds: fewer were asked for.
    let excess = new.len().saturating_sub(goal.replicas);
    for member in ordered(new, false).chain(ordered(new, true)).take(excess) {
        plan.delete.push(delete(member));
        available -= usize::from(member.available);
        live -= 1;
    }

    // Old ones that do not answer go without any loss, but not so many that the
    // rest would fall short if the new ones never come up.
    let starting = new
        .iter()
        .filter(|member| !member.available)
        .count()
        .saturating_sub(excess);
    let cleanup = live.saturating_sub(floor).saturating_sub(starting);
    plan.delete
        .extend(ordered(old, false).take(cleanup).map(delete));

    let surplus = available.saturating_sub(floor);
    plan.delete
        .extend(ordered(old, true).take(surplus).map(delete));
}

/// The fewest workers that must answer. A surge worker that finds no room
/// lowers it by one, since nothing else would ever make room.
fn floor(new: &[&Member], old: &[&Member], goal: &Goal, plan: &mut Plan) -> usize {
    let floor = goal.replicas.saturating_sub(goal.unavailable);
    let stuck = new.iter().filter_map(|member| member.without_room).max();
    match stuck {
        Some(since) if !old.is_empty() && since < goal.patience => {
            let rest = goal.patience.saturating_sub(since);
            plan.again = Some(plan.again.map_or(rest, |again| again.min(rest)));
            floor
        }
        Some(_) if !old.is_empty() && goal.unavailable == 0 => {
            plan.delete_first = true;
            goal.replicas.saturating_sub(1)
        }
        _ => floor,
    }
}

/// Those that are (not) available, the emptiest first and the youngest among equals.
fn ordered<'a>(members: &[&'a Member], available: bool) -> impl Iterator<Item = &'a Member> {
    let mut all: Vec<&Member> = members
        .iter()
        .copied()
        .filter(|member| member.available == available)
        .collect();
    all.sort_by_key(|member| {
        (
            member.queue,
            std::cmp::Reverse(member.ordinal),
            member.name.clone(),
        )
    });
    all.into_iter()
}

/// The smallest numbers that no worker of the revision has, whatever its state.
fn free_ordinals(members: &[Member], goal: &Goal, revision: &str) -> impl Iterator<Item = u32> {
    let mut used: Vec<u32> = members
        .iter()
        .filter(|member| member.revision == revision)
        .map(|member| member.ordinal)
        .collect();
    let suffix = |name: &String| {
        name.rsplit_once(&format!("-{revision}-"))?
            .1
            .parse::<u32>()
            .ok()
    };
    used.extend(goal.taken.iter().filter_map(suffix));
    (0..).filter(move |ordinal| !used.contains(ordinal))
}

fn delete(member: &Member) -> Delete {
    Delete {
        name: member.name.clone(),
        uid: member.uid.clone(),
    }
}

#[cfg(test)]
mod tests;
