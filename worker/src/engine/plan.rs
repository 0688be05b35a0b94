//! The scheduler: one pure function from what is known to what happens next.
//!
//! The rules, in the order they are applied:
//! 1. When running sequences outgrow the KV memory, the one admitted last goes
//!    back to the queue (it loses no text, only time); the first one never does.
//! 2. Those who wait come in, first come first served, while there are a slot
//!    and memory; they begin with what a slot already holds of them.
//! 3. Who is left out and waited too long is given up, and holds nobody back:
//!    nobody is refused for want of what is free.
//! 4. Slots that are kept for later give way, least recently used first.
//!    A step that moved anybody computes nothing: the next one follows at once
//!    and knows who runs, so that a newcomer never waits out a chunk of others.
//! 5. Every started sequence gets a token, beside at most one chunk of work for
//!    those that have not: a batch of images, or prompt tokens. Prompts
//!    that end within the chunk go first, so that a short one does not wait for
//!    a long one; nobody is passed over more than [`PATIENCE`] times.

use std::ops::Range;
use std::time::Instant;

use super::key::Key;
use super::state::{Running, SequenceId, Slot, State};

/// How often later prompts may go before an earlier one.
pub const PATIENCE: u32 = 4;

/// What happens next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Waited too long.
    pub expire: Vec<SequenceId>,
    /// Back to the queue.
    pub preempt: Vec<SequenceId>,
    /// Slots whose kept content goes.
    pub evict: Vec<usize>,
    /// Come in.
    pub admit: Vec<Admission>,
    /// So many more images are encoded for these.
    pub encode: Vec<(SequenceId, usize)>,
    /// Positions are computed for these; the last of them samples a token.
    pub prefill: Vec<(SequenceId, Range<usize>)>,
    /// Each gets one token.
    pub decode: Vec<SequenceId>,
}

/// A sequence gets a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admission {
    /// Which.
    pub id: SequenceId,
    /// Where to.
    pub slot: usize,
    /// What it begins with: the first tokens of a slot, which may be its own.
    pub reuse: Option<(usize, usize)>,
}

impl Step {
    /// Whether a sequence got or lost a slot.
    #[must_use]
    pub fn moves(&self) -> bool {
        !(self.preempt.is_empty() && self.admit.is_empty())
    }
}

impl Admission {
    /// Tokens that need not be computed.
    #[must_use]
    pub fn reused(&self) -> usize {
        self.reuse.map_or(0, |(_, tokens)| tokens)
    }
}

/// Decides on the next step.
#[must_use]
pub fn plan(state: &State, now: Instant) -> Step {
    let mut step = Step::default();
    let mut committed = state.committed();
    preempt(state, &mut step, &mut committed);
    admit(state, now, &mut step, &mut committed);
    evict(state, &mut step, committed);
    if !step.moves() {
        fill(state, &mut step);
    }
    step
}

fn preempt(state: &State, step: &mut Step, committed: &mut usize) {
    for running in state.running.iter().skip(1).rev() {
        if *committed <= state.budget.kv_tokens {
            break;
        }
        *committed -= running.key.len();
        step.preempt.push(running.id);
    }
}

/// Who comes in, and who is given up.
fn admit(state: &State, now: Instant, step: &mut Step, committed: &mut usize) {
    let mut free: Vec<usize> = (0..state.slots.len())
        .filter(|&slot| !matches!(state.slots[slot], Slot::Owned))
        .collect();
    let mut running = state.running.len();
    // What another admission of this step has overwritten is nobody's source.
    let mut taken: Vec<usize> = Vec::new();
    // Somebody further ahead goes on waiting.
    let mut held_back = !step.preempt.is_empty();
    for waiting in &state.waiting {
        // Room for one more token of each, or the newcomer would be the next to go.
        let room = *committed + waiting.key.len() + running < state.budget.kv_tokens;
        if held_back || free.is_empty() || !(room || running == 0) {
            if waiting.deadline.is_some_and(|deadline| deadline <= now) {
                step.expire.push(waiting.id);
            } else {
                held_back = true;
            }
            continue;
        }
        let source = longest_prefix(state, &waiting.key, &taken);
        let slot = landing(state, &free, source);
        free.retain(|&other| other != slot);
        taken.push(slot);
        step.admit.push(Admission {
            id: waiting.id,
            slot,
            reuse: source,
        });
        *committed += waiting.key.len();
        running += 1;
    }
}

/// The slot that holds most of `key`'s beginning. At least one position is
/// left to compute, because only computing gives logits.
fn longest_prefix(state: &State, key: &Key, taken: &[usize]) -> Option<(usize, usize)> {
    let held = |slot: usize| match &state.slots[slot] {
        Slot::Empty => 0,
        Slot::Cached { key: held, .. } => held.common(key),
        Slot::Owned => state
            .running
            .iter()
            .find(|running| running.slot == slot)
            .map_or(0, |running| running.key.common(key).min(running.computed)),
    };
    (0..state.slots.len())
        .filter(|slot| !taken.contains(slot))
        .map(|slot| (slot, held(slot).min(key.len() - 1)))
        .filter(|&(_, tokens)| tokens > 0)
        .max_by_key(|&(slot, tokens)| (tokens, usize::MAX - slot))
}

/// Where a sequence goes: onto what it continues, if that is most of what the
/// slot holds; else over what has been useless for longest.
fn landing(state: &State, free: &[usize], source: Option<(usize, usize)>) -> usize {
    if let Some((slot, tokens)) = source
        && free.contains(&slot)
        && let Slot::Cached { key, .. } = &state.slots[slot]
        && tokens * 2 >= key.len()
    {
        return slot;
    }
    let worth = |slot: usize| match &state.slots[slot] {
        Slot::Cached { left_at, .. } => *left_at,
        Slot::Empty | Slot::Owned => 0,
    };
    free.iter()
        .copied()
        .min_by_key(|&slot| worth(slot))
        .unwrap_or_default()
}

fn evict(state: &State, step: &mut Step, committed: usize) {
    let mut kept: Vec<(u64, usize, usize)> = (0..state.slots.len())
        .filter(|&slot| step.admit.iter().all(|admission| admission.slot != slot))
        .filter_map(|slot| match &state.slots[slot] {
            Slot::Cached { key, left_at } => Some((*left_at, slot, key.len())),
            _ => None,
        })
        .collect();
    kept.sort_unstable();
    let mut held = committed + kept.iter().map(|&(_, _, tokens)| tokens).sum::<usize>();
    for (_, slot, tokens) in kept {
        if held <= state.budget.kv_tokens {
            break;
        }
        held -= tokens;
        step.evict.push(slot);
    }
}

/// A token for each, and one chunk of work beside it.
fn fill(state: &State, step: &mut Step) {
    let running = &state.running;
    step.decode = running
        .iter()
        .filter(|running| running.decodes())
        .map(|running| running.id)
        .collect();
    step.encode = images(state);
    if !step.encode.is_empty() {
        return;
    }
    let prompts: Vec<&Running> = running
        .iter()
        .filter(|sequence| sequence.missing() > 0 && !sequence.decodes())
        .collect();
    let mut room = state.budget.chunk_tokens;
    let mut take = |sequence: &Running, tokens: usize| {
        let range = sequence.computed..sequence.computed + tokens;
        step.prefill.push((sequence.id, range));
    };
    let impatient = prompts
        .iter()
        .find(|sequence| sequence.passed_over >= PATIENCE);
    let mut short: Vec<_> = prompts
        .iter()
        .filter(|sequence| sequence.missing() <= room)
        .collect();
    if let Some(sequence) = impatient {
        take(sequence, sequence.missing().min(room));
    } else if short.is_empty() {
        if let Some(sequence) = prompts.first() {
            take(sequence, sequence.missing().min(room));
        }
    } else {
        short.sort_by_key(|sequence| sequence.missing());
        for sequence in short {
            if sequence.missing() > room {
                break;
            }
            room -= sequence.missing();
            take(sequence, sequence.missing());
        }
    }
}

/// The images that come next, as many as the budget has tiles for; one that exceeds it goes alone.
fn images(state: &State) -> Vec<(SequenceId, usize)> {
    let all = state.running.iter().flat_map(|sequence| {
        let tiles = sequence.tiles.iter();
        tiles.map(move |tiles| (sequence.id, *tiles))
    });
    let mut chosen: Vec<(SequenceId, usize)> = Vec::new();
    let mut spent = 0;
    for (id, tiles) in all {
        if !chosen.is_empty() && spent + tiles > state.budget.tiles {
            break;
        }
        spent += tiles;
        match chosen.last_mut() {
            Some((last, count)) if *last == id => *count += 1,
            _ => chosen.push((id, 1)),
        }
    }
    chosen
}

impl State {
    /// Counts for every prompt whether this step let a later one go before it.
    pub fn note_order(&mut self, step: &Step) {
        let served = |id: SequenceId| step.prefill.iter().any(|(other, _)| *other == id);
        let last = self.running.iter().rposition(|running| served(running.id));
        for (at, running) in self.running.iter_mut().enumerate() {
            if served(running.id) {
                running.passed_over = 0;
            } else if last.is_some_and(|last| at < last)
                && running.tiles.is_empty()
                && !running.decodes()
            {
                running.passed_over += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests;
