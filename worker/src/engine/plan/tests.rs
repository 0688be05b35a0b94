//! The scheduler by table and by property: random histories are played on the
//! state alone, without a model.

#![expect(
    clippy::single_range_in_vec_init,
    reason = "a list of prompts, each a range of tokens"
)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use shell::clock;

use super::super::key::Key;
use super::super::state::{Budget, SequenceId, State, Waiting};
use super::{PATIENCE, Step, plan};

const BUDGET: Budget = Budget {
    kv_tokens: 100,
    chunk_tokens: 10,
    tiles: 4,
};

fn prompt(tokens: std::ops::Range<u32>) -> Key {
    let mut key = Key::default();
    key.extend(&tokens.collect::<Vec<_>>());
    key
}

fn waiting(id: SequenceId, key: Key) -> Waiting {
    Waiting {
        id,
        key,
        started: false,
        tiles: Vec::new(),
        deadline: None,
    }
}

fn state(slots: usize, prompts: &[std::ops::Range<u32>]) -> State {
    let mut state = State::new(BUDGET, slots);
    for (id, tokens) in prompts.iter().enumerate() {
        state
            .waiting
            .push_back(waiting(id as u64, prompt(tokens.clone())));
    }
    state
}

/// Does what the engine does with a step; each sequence ends after `lengths[id]` tokens.
fn play(state: &mut State, step: &Step, left: &mut BTreeMap<SequenceId, usize>) {
    state
        .waiting
        .retain(|waiting| !step.expire.contains(&waiting.id));
    for &id in &step.preempt {
        state.preempt(id);
    }
    for admission in &step.admit {
        state.admit(admission);
    }
    for &slot in &step.evict {
        state.evict(slot);
    }
    for &(id, images) in &step.encode {
        state.running_mut(id).unwrap().tiles.drain(..images);
    }
    state.note_order(step);
    let decoded = step.decode.iter().map(|&id| (id, 1));
    let filled = step.prefill.iter().map(|(id, range)| (*id, range.len()));
    for (id, count) in decoded.chain(filled).collect::<Vec<_>>() {
        let running = state.running_mut(id).unwrap();
        running.computed += count;
        if running.missing() > 0 {
            continue;
        }
        let left = left.get_mut(&id).unwrap();
        *left -= 1;
        if *left == 0 {
            state.finish(id);
        } else {
            running.key.push(1000 + *left as u32);
            running.started = true;
        }
    }
}

/// Plays on, a step a millisecond, until nobody waits or runs.
fn run(state: &mut State, lengths: &[usize], now: Instant, mut check: impl FnMut(&State, &Step)) {
    let mut left: BTreeMap<_, _> = lengths
        .iter()
        .enumerate()
        .map(|(id, &n)| (id as u64, n))
        .collect();
    for millis in 0..10_000 {
        if state.waiting.is_empty() && state.running.is_empty() {
            return;
        }
        let step = plan(state, now + Duration::from_millis(millis));
        check(state, &step);
        play(state, &step, &mut left);
    }
    panic!("the scheduler does not come to an end");
}

#[test]
fn first_come_first_served_while_there_are_slots() {
    let step = plan(&state(2, &[0..5, 100..105, 200..205]), clock::now());
    let admitted: Vec<_> = step
        .admit
        .iter()
        .map(|admission| (admission.id, admission.slot))
        .collect();
    assert_eq!(admitted, [(0, 0), (1, 1)]);
}

#[test]
fn a_request_that_does_not_fit_holds_back_those_behind_it() {
    let step = plan(&state(4, &[0..60, 100..160, 200..205]), clock::now());
    assert_eq!(step.admit.len(), 1);
}

#[test]
fn who_waited_too_long_is_given_up_and_who_ran_is_not() {
    let now = clock::now();
    let mut state = state(0, &[0..5, 100..105]);
    state.waiting[0].deadline = Some(now);
    state.waiting[1].deadline = Some(now + Duration::from_secs(1));
    assert_eq!(plan(&state, now).expire, [0]);
}

#[test]
fn nobody_is_given_up_who_can_come_in_and_who_is_given_up_holds_nobody_back() {
    type Prompts = &'static [std::ops::Range<u32>];
    type Ids = &'static [SequenceId];
    type Row = (usize, Prompts, &'static [usize], Ids, Ids);
    // Slots, prompts, who waited too long; who comes in, and who is given up.
    let table: [Row; 6] = [
        (2, &[0..5, 100..105], &[0, 1], &[0, 1], &[]),
        (1, &[0..5, 100..105], &[0, 1], &[0], &[1]),
        (4, &[0..60, 100..160, 200..205], &[], &[0], &[]),
        (4, &[0..60, 100..160, 200..205], &[1], &[0, 2], &[1]),
        (4, &[0..60, 100..160, 200..205], &[2], &[0], &[2]),
        (4, &[0..60, 100..160, 200..205], &[1, 2], &[0, 2], &[1]),
    ];
    let now = clock::now();
    for (slots, prompts, late, comes, given_up) in table {
        let mut state = state(slots, prompts);
        for &id in late {
            state.waiting[id].deadline = Some(now);
        }
        let step = plan(&state, now);
        let admitted: Vec<_> = step.admit.iter().map(|admission| admission.id).collect();
        assert_eq!(
            (admitted.as_slice(), step.expire.as_slice()),
            (comes, given_up),
            "{prompts:?} in {slots} slots, late: {late:?}"
        );
    }
}

#[test]
fn a_short_prompt_goes_before_the_rest_of_a_long_one() {
    let now = clock::now();
    let mut state = state(4, &[0..40]);
    let mut left = BTreeMap::from([(0, 1), (1, 1)]);
    for _ in 0..2 {
        let step = plan(&state, now);
        play(&mut state, &step, &mut left);
    }
    assert_eq!(state.running[0].computed, 10, "the long one is under way");
    state.waiting.push_back(waiting(1, prompt(500..505)));
    let step = plan(&state, now);
    assert!(
        step.moves() && step.prefill.is_empty(),
        "it comes in before anything is computed"
    );
    play(&mut state, &step, &mut left);
    let step = plan(&state, now);
    assert_eq!(
        step.prefill,
        [(1, 0..5)],
        "and takes the whole chunk to itself"
    );
}

#[test]
fn nobody_is_passed_over_for_ever() {
    let now = clock::now();
    let mut state = state(64, &[0..40]);
    let mut left: BTreeMap<_, _> = (0..64).map(|id| (id, 1)).collect();
    let mut longest = 0;
    let mut without = 0;
    for id in 1..60u64 {
        state
            .waiting
            .push_back(waiting(id, prompt(id as u32 * 100..id as u32 * 100 + 10)));
        for _ in 0..2 {
            let step = plan(&state, now);
            let served = step.prefill.iter().any(|(id, _)| *id == 0)
                || !state.running.iter().any(|r| r.id == 0);
            if !step.moves() {
                without = if served { 0 } else { without + 1 };
            }
            longest = longest.max(without);
            play(&mut state, &step, &mut left);
        }
    }
    assert!(longest <= PATIENCE as usize, "passed over {longest} times");
}

#[test]
fn the_next_turn_of_a_conversation_begins_with_what_is_kept() {
    let now = clock::now();
    let mut state = state(2, &[0..20]);
    run(&mut state, &[3], now, |_, _| ());
    let mut key = prompt(0..20);
    key.extend(&[1002, 1001, 7, 8]);
    state.waiting.push_back(waiting(9, key));
    let step = plan(&state, now);
    assert_eq!(step.admit[0].reuse, Some((0, 22)));
    assert_eq!(step.admit[0].slot, 0);
}

#[test]
fn a_small_common_part_is_copied_and_leaves_its_source_alone() {
    let now = clock::now();
    let mut state = state(2, &[0..40]);
    run(&mut state, &[1], now, |_, _| ());
    let mut key = prompt(0..10);
    key.extend(&[777]);
    state.waiting.push_back(waiting(9, key));
    let step = plan(&state, now);
    assert_eq!(
        (step.admit[0].slot, step.admit[0].reuse),
        (1, Some((0, 10)))
    );
}

#[test]
fn the_same_prompt_twice_still_computes_its_last_position() {
    let now = clock::now();
    let mut state = state(2, &[0..20]);
    run(&mut state, &[1], now, |_, _| ());
    state.waiting.push_back(waiting(9, prompt(0..20)));
    assert_eq!(plan(&state, now).admit[0].reused(), 19);
}

#[test]
fn when_memory_runs_out_the_last_one_goes_back_and_the_first_one_stays() {
    let now = clock::now();
    let mut state = state(3, &[0..40, 100..140]);
    let mut preempted = Vec::new();
    run(&mut state, &[40, 40], now, |_, step| {
        preempted.extend(step.preempt.clone());
    });
    assert!(!preempted.is_empty());
    assert!(preempted.iter().all(|&id| id == 1));
}

/// Images of one step: of which request, and how many.
type Images = &'static [(SequenceId, usize)];

#[test]
fn images_are_encoded_before_prompts_in_steps_of_the_budget_beside_who_runs() {
    let now = clock::now();
    // Tiles of the images of each request, and what the steps encode.
    let table: [(&[&[usize]], &[Images]); 6] = [
        (&[&[]], &[]),
        (&[&[3], &[1], &[5]], &[&[(1, 1), (2, 1)], &[(3, 1)]]),
        (&[&[2, 2, 2]], &[&[(1, 2)], &[(1, 1)]]),
        (&[&[5, 5, 5]], &[&[(1, 1)], &[(1, 1)], &[(1, 1)]]),
        (&[&[9, 1], &[3]], &[&[(1, 1)], &[(1, 1), (2, 1)]]),
        (&[&[3, 3], &[1]], &[&[(1, 1)], &[(1, 1), (2, 1)]]),
    ];
    for (requests, expected) in table {
        let mut state = state(4, &[0..5]);
        let mut left: BTreeMap<_, _> = (0..4).map(|id| (id, 50)).collect();
        for _ in 0..2 {
            let step = plan(&state, now);
            play(&mut state, &step, &mut left);
        }
        for (id, tiles) in (1..).zip(requests) {
            let key = prompt(id as u32 * 100..id as u32 * 100 + 5);
            state.waiting.push_back(Waiting {
                tiles: tiles.to_vec(),
                ..waiting(id, key)
            });
        }
        let step = plan(&state, now);
        play(&mut state, &step, &mut left);
        for &images in expected {
            let step = plan(&state, now);
            assert_eq!(step.encode, images, "{requests:?}");
            assert_eq!(step.decode, [0], "{requests:?}: who runs gets a token");
            assert!(step.prefill.is_empty(), "{requests:?}");
            play(&mut state, &step, &mut left);
        }
        let step = plan(&state, now);
        assert_eq!(
            (step.encode.len(), step.prefill.is_empty()),
            (0, false),
            "{requests:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn every_history_keeps_the_rules_and_ends(
        slots in 1usize..5,
        requests in prop::collection::vec(
            (0u32..3, 1u32..50, 1usize..40, prop::collection::vec(1usize..6, 0..4), prop::option::of(0u64..60)), 1..12),
    ) {
        let now = clock::now();
        let mut state = State::new(BUDGET, slots);
        let mut lengths = Vec::new();
        for (id, (family, length, tokens, tiles, patience)) in requests.into_iter().enumerate() {
            // Three families of prompts, so that beginnings are shared.
            let key = prompt(family * 1000..family * 1000 + length);
            lengths.push(tokens.min(100 - length as usize));
            let deadline = patience.map(|millis| now + Duration::from_millis(millis));
            state.waiting.push_back(Waiting { tiles, deadline, ..waiting(id as u64, key) });
        }
        run(&mut state, &lengths, now, |state, step| {
            let chunk: usize = step.prefill.iter().map(|(_, range)| range.len()).sum();
            assert!(chunk <= BUDGET.chunk_tokens);
            assert!(step.encode.is_empty() || step.prefill.is_empty(), "one kind of work at a time");
            let images = step.encode.iter().flat_map(|&(id, images)| {
                let running = state.running.iter().find(|running| running.id == id).unwrap();
                &running.tiles[..images]
            });
            let (images, tiles) = images.fold((0, 0usize), |(images, sum), tiles| (images + 1, sum + tiles));
            assert!(tiles <= BUDGET.tiles || images == 1, "{images} images of {tiles} tiles at once");
            let stays = |id: &u64| !step.preempt.contains(id);
            if step.moves() {
                assert!(step.decode.is_empty() && chunk == 0, "who moves first is computed next");
            } else {
                let due: Vec<_> = state.running.iter().filter(|r| r.decodes()).map(|r| r.id).collect();
                assert_eq!(step.decode, due, "everyone who can gets a token");
            }
            let mut taken: Vec<_> = step.admit.iter().map(|admission| admission.slot).collect();
            taken.extend(state.running.iter().filter(|r| stays(&r.id)).map(|r| r.slot));
            taken.sort_unstable();
            let before = taken.len();
            taken.dedup();
            assert_eq!(taken.len(), before, "no slot is given twice");
            let mut after = state.clone();
            for &id in &step.preempt {
                after.preempt(id);
            }
            for admission in &step.admit {
                after.admit(admission);
            }
            for &slot in &step.evict {
                after.evict(slot);
            }
            let held = after.committed() + after.cached();
            assert!(held <= BUDGET.kv_tokens || after.running.len() == 1, "{held} tokens are held");
            let full = after.running.len() == after.slots.len();
            for (at, waiting) in after.waiting.iter().enumerate() {
                let fits = after.committed() + waiting.key.len() + after.running.len() < BUDGET.kv_tokens;
                let ahead = after.waiting.iter().take(at).any(|other| !step.expire.contains(&other.id));
                let left_out = full || !fits || ahead || !step.preempt.is_empty();
                assert!(left_out, "{} could have come in", waiting.id);
            }
        });
    }
}
