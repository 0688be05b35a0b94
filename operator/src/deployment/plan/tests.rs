//! The rules one by one, and the bounds as properties of every plan.

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
        told: true,
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
    let mut members = [ended, member("new", 1, true)];
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
    members[0].told = false;
    let untold = plan(&members, &goal);
    assert_eq!((untold.create.len(), untold.delete.len()), (1, 0));
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
            member.life = [Life::Unborn, Life::Live, Life::Leaving, Life::Ended][usize::from(life)];
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
