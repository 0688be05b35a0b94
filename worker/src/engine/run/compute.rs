//! The language model's part of a step: one batch of prompt chunks and single
//! tokens, then a token for every sequence whose logits came out.

use std::time::Instant;

use protocol::openai::FinishReason;
use shell::clock;

use super::Engine;
use super::guard::guarded;
use crate::engine::backend::{Backend, Rows};
use crate::engine::plan::Step;
use crate::engine::sequence::Next;
use crate::engine::state::{SequenceId, Slot};
use crate::input::{Piece, positions};
use crate::model::Part;

/// What a batch came to.
struct Outcome {
    rows: Rows,
    failed: Vec<SequenceId>,
}

impl<B: Backend> Engine<B> {
    /// Runs one batch, and turns its logits into tokens.
    pub(super) fn compute(&mut self, step: &Step) {
        let mut ids = Vec::new();
        let mut parts = Vec::new();
        let wanted = step.decode.iter().map(|&id| (id, None)).chain(
            step.prefill
                .iter()
                .map(|(id, range)| (*id, Some(range.clone()))),
        );
        for (id, range) in wanted {
            let (Some(running), Some(sequence)) =
                (self.state.running_mut(id), self.sequences.get(&id))
            else {
                continue;
            };
            let range = range.unwrap_or(running.computed..running.key.len());
            if let Some(input) = running.key.slice(range.clone(), &sequence.features) {
                ids.push(id);
                parts.push(Part {
                    slot: running.slot,
                    start: range.start,
                    input,
                    logits: range.end == running.key.len(),
                });
            }
        }
        if parts.is_empty() {
            return;
        }
        let began = clock::now();
        let outcome = self.forward(&ids, &parts);
        self.count_model_time(began);
        self.broken = if outcome.failed.len() == ids.len() {
            self.broken + 1
        } else {
            0
        };
        for &id in &outcome.failed {
            self.fail(id);
        }
        let now = clock::now();
        for ((id, part), row) in ids.into_iter().zip(&parts).zip(outcome.rows) {
            let count = positions(&part.input);
            if let Some(running) = self.state.running_mut(id) {
                running.computed += count;
                if let Some(row) = row {
                    self.sample(id, &row, now);
                }
            }
        }
    }

    /// All together; when that fails, one by one, so that only the faulty ones are lost.
    fn forward(&mut self, ids: &[SequenceId], parts: &[Part]) -> Outcome {
        match guarded(|| self.backend.forward(parts)) {
            Ok(rows) => Outcome {
                rows,
                failed: Vec::new(),
            },
            Err(problem) => {
                tracing::error!(
                    sequences = parts.len(),
                    problem,
                    "a batch failed; trying each sequence alone"
                );
                let mut outcome = Outcome {
                    rows: Vec::new(),
                    failed: Vec::new(),
                };
                for (&id, part) in ids.iter().zip(parts) {
                    self.backend.truncate(part.slot, part.start);
                    match guarded(|| self.backend.forward(std::slice::from_ref(part))) {
                        Ok(mut rows) => outcome.rows.push(rows.pop().flatten()),
                        Err(problem) => {
                            tracing::error!(
                                problem,
                                "the model fails on a sequence; its request ends"
                            );
                            outcome.rows.push(None);
                            outcome.failed.push(id);
                        }
                    }
                }
                outcome
            }
        }
    }

    /// After faults in a row: whether the model computes the shortest of prompts, in a slot that a
    /// fault has just emptied. Requests at fault look like a broken model when they come alone, and
    /// clients repeat them.
    pub(super) fn works_still(&mut self) -> bool {
        let empty = |slot: &Slot| matches!(slot, Slot::Empty);
        let Some(slot) = self.state.slots.iter().position(empty) else {
            return true;
        };
        let part = Part {
            slot,
            start: 0,
            input: vec![Piece::Tokens(vec![0])],
            logits: true,
        };
        let proof = guarded(|| self.backend.forward(&[part]));
        self.empty(slot);
        self.broken = 0;
        match proof {
            Ok(_) => {
                tracing::warn!(
                    "the model failed several steps in a row and works all the same: their requests were at fault"
                );
                true
            }
            Err(problem) => {
                tracing::error!(
                    problem,
                    "the model fails on any prompt after it failed several steps in a row: the engine ends"
                );
                false
            }
        }
    }

    fn sample(&mut self, id: SequenceId, logits: &[f32], now: Instant) {
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return;
        };
        let eos = &self.options.eos;
        let next = guarded(|| Ok(sequence.advance(logits, eos))).unwrap_or_else(|problem| {
            tracing::error!(problem, "cannot turn a token into text; its request ends");
            Next::Broken
        });
        let metrics = &self.options.metrics;
        metrics.generation_tokens.inc();
        let times = &mut sequence.times;
        let since = |from: Instant| now.saturating_duration_since(from).as_secs_f64();
        match times.last {
            None => {
                metrics.first_token.observe(since(times.arrived));
                metrics
                    .prefill_time
                    .observe(since(times.admitted.unwrap_or(now)));
                times.first = Some(now);
            }
            Some(last) => metrics.inter_token.observe(since(last)),
        }
        times.last = Some(now);
        match next {
            Next::Continue(token) => {
                if let Some(running) = self.state.running_mut(id) {
                    running.key.push(token);
                    running.started = true;
                }
            }
            Next::Done(reason) => {
                self.settle(id);
                self.forget(id, FinishReason::name(reason));
            }
            Next::Broken => self.fail(id),
        }
    }
}
