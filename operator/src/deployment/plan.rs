//! Which workers come and which go (pure). The bounds hold at every single
//! write: creations stop at wish + surge, and no available worker is deleted
//! below wish - unavailable, except one at a time when no node has room for a
//! surge worker, which [`Plan::delete_first`] says.

use std::time::Duration;

use crate::worker::diagnose::Life;

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
                .filter(|member| !member.terminating)
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn member(revision: &str, ordinal: u32, available: bool) -> Member {
        Member {
            name: format!("llava-{revision}-{ordinal}"),
            uid: format!("{revision}-{ordinal}"),
            revision: revision.to_owned(),
            ordinal,
            life: Life::Live,
            available,
            queue: 0,
            without_room: None,
            terminating: false,
            pod_lives: true,
        }
    }

    fn goal(replicas: usize, surge: usize, unavailable: usize) -> Goal {
        Goal {
            replicas,
            surge,
            unavailable,
            revision: "new".to_owned(),
            paused: false,
            patience: Duration::from_secs(10),
            replace_in: Duration::ZERO,
            taken: Vec::new(),
        }
    }

    fn names(plan: &Plan) -> Vec<&str> {
        plan.delete
            .iter()
            .map(|delete| delete.name.as_str())
            .collect()
    }

    #[test]
    fn a_new_deployment_gets_all_its_workers_under_the_smallest_free_numbers() {
        let mut leaving = member("new", 1, false);
        leaving.life = Life::Leaving;
        leaving.terminating = true;
        leaving.pod_lives = false;
        let plan = plan(&[leaving], &goal(3, 1, 0));
        let ordinals: Vec<_> = plan.create.iter().map(|create| create.ordinal).collect();
        assert_eq!(ordinals, [0, 2, 3]);
        assert!(plan.delete.is_empty());
    }

    #[test]
    fn a_deleted_worker_keeps_its_place_until_its_pod_is_told_to_end() {
        let mut deleted = member("old", 1, true);
        deleted.life = Life::Leaving;
        deleted.terminating = true;
        let mut members = [member("new", 0, true), member("old", 0, true), deleted];
        assert!(plan(&members, &goal(2, 1, 0)).create.is_empty());
        members[2].pod_lives = false;
        assert_eq!(plan(&members, &goal(2, 1, 0)).create.len(), 1);
    }

    #[test]
    fn the_emptiest_worker_goes_first() {
        let mut members = [
            member("new", 0, true),
            member("new", 1, true),
            member("new", 2, true),
        ];
        members[0].queue = 2;
        members[1].queue = 0;
        members[2].queue = 5;
        assert_eq!(names(&plan(&members, &goal(2, 1, 0))), ["llava-new-1"]);
        members[2].available = false;
        assert_eq!(names(&plan(&members, &goal(2, 1, 0))), ["llava-new-2"]);
    }

    #[test]
    fn an_ended_worker_is_replaced_once_its_time_has_come() {
        let mut ended = member("new", 0, false);
        ended.life = Life::Ended;
        let members = [ended, member("new", 1, true)];
        let mut goal = goal(2, 1, 0);
        goal.replace_in = Duration::from_secs(10);
        let held = plan(&members, &goal);
        assert_eq!(
            (held.create.len(), held.delete.len(), held.again),
            (0, 0, Some(goal.replace_in))
        );
        goal.replace_in = Duration::ZERO;
        let done = plan(&members, &goal);
        assert_eq!(
            (done.create[0].ordinal, names(&done)),
            (2, vec!["llava-new-0"])
        );
    }

    #[test]
    fn without_room_for_a_surge_worker_one_old_one_goes_first() {
        let mut stuck = member("new", 0, false);
        stuck.without_room = Some(Duration::from_secs(3));
        let mut members = vec![stuck, member("old", 0, true), member("old", 1, true)];
        let patient = plan(&members, &goal(2, 1, 0));
        assert_eq!(
            (patient.delete.len(), patient.again),
            (0, Some(Duration::from_secs(7)))
        );
        members[0].without_room = Some(Duration::from_secs(10));
        let decided = plan(&members, &goal(2, 1, 0));
        assert!(decided.delete_first);
        assert_eq!(names(&decided), ["llava-old-1"]);
        members.pop();
        assert!(
            plan(&members, &goal(2, 1, 0)).delete.is_empty(),
            "one at a time"
        );
    }

    #[test]
    fn a_canary_that_fails_takes_no_worker_that_answers() {
        let members = [
            member("new", 0, false),
            member("old", 0, true),
            member("old", 1, true),
        ];
        assert!(plan(&members, &goal(2, 1, 0)).delete.is_empty());
    }

    #[test]
    fn a_held_rollout_scales_with_the_template_that_runs() {
        let members = [member("old", 0, true), member("old", 1, true)];
        let mut goal = goal(3, 1, 0);
        goal.paused = true;
        let plan = plan(&members, &goal);
        assert_eq!(
            (plan.create[0].revision.as_str(), plan.create[0].ordinal),
            ("old", 2)
        );
        assert!(plan.delete.is_empty());
    }

    fn members() -> impl Strategy<Value = Vec<Member>> {
        let one = (
            any::<bool>(),
            any::<bool>(),
            0..4_u8,
            0..9_u32,
            any::<bool>(),
        );
        prop::collection::vec(one, 0..14).prop_map(|all| {
            let make = |(ordinal, (new, available, life, queue, roomless)): (
                usize,
                (bool, bool, u8, u32, bool),
            )| {
                let revision = if new { "new" } else { "old" };
                let mut member = member(revision, u32::try_from(ordinal).unwrap(), false);
                member.life =
                    [Life::Unborn, Life::Live, Life::Leaving, Life::Ended][usize::from(life)];
                member.available = available && member.life == Life::Live;
                member.terminating = member.life == Life::Leaving && new;
                member.queue = queue;
                let pending = roomless && new && !member.available;
                member.without_room = pending.then_some(Duration::from_secs(30));
                member
            };
            all.into_iter().enumerate().map(make).collect()
        })
    }

    proptest! {
        /// In whatever order the writes of a plan happen, and wherever it stops.
        #[test]
        fn no_write_of_any_plan_breaks_the_bounds(
            members in members(), replicas in 0..8_usize, surge in 0..3_usize, unavailable in 0..3_usize,
        ) {
            prop_assume!(surge + unavailable > 0);
            let goal = goal(replicas, surge, unavailable);
            let plan = plan(&members, &goal);
            let live = members.iter().filter(|member| member.counts()).count();
            let available = members.iter().filter(|member| member.available).count();
            prop_assert!(live + plan.create.len() <= live.max(replicas + surge));
            let gone: Vec<_> = plan.delete.iter().map(|delete| &delete.uid).collect();
            let lost = members.iter().filter(|member| member.available && gone.contains(&&member.uid)).count();
            let slack = if plan.delete_first { 1 } else { unavailable };
            prop_assert!(available - lost >= available.min(replicas.saturating_sub(slack)));
            let mut unique = gone.clone();
            unique.sort();
            unique.dedup();
            prop_assert_eq!(unique.len(), gone.len());
            for create in &plan.create {
                prop_assert!(!members.iter().any(|member| member.revision == create.revision && member.ordinal == create.ordinal));
            }
        }

        /// A rollout under readiness that flaps at random reaches its end once the flapping stops.
        #[test]
        fn every_rollout_ends(
            replicas in 1..6_usize, surge in 0..3_usize, unavailable in 0..3_usize,
            flaps in prop::collection::vec(any::<u64>(), 0..20),
        ) {
            prop_assume!(surge + unavailable > 0);
            let goal = goal(replicas, surge, unavailable.min(replicas));
            prop_assume!(goal.surge + goal.unavailable > 0);
            let mut members: Vec<_> = (0..replicas)
                .map(|ordinal| member("old", u32::try_from(ordinal).unwrap(), true))
                .collect();
            for step in 0..200 {
                let plan = plan(&members, &goal);
                let quiet = plan.create.is_empty() && plan.delete.is_empty();
                if step >= flaps.len() && quiet && members.iter().all(|member| member.available) {
                    break;
                }
                members.retain(|member| !plan.delete.iter().any(|delete| delete.uid == member.uid));
                members.extend(plan.create.iter().map(|create| member(&create.revision, create.ordinal, false)));
                let flap = flaps.get(step).copied().unwrap_or(u64::MAX);
                for (index, member) in members.iter_mut().enumerate() {
                    member.available = flap >> (index % 64) & 1 == 1;
                }
            }
            prop_assert_eq!(members.len(), replicas);
            prop_assert!(members.iter().all(|member| member.revision == "new" && member.available));
        }
    }
}
