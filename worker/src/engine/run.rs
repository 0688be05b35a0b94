//! The engine thread: it owns the model, asks the scheduler what comes next,
//! and does it. A fault ends the request that it belongs to and no other.

mod compute;
mod guard;
mod images;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Instant;

use shell::clock;
use tokio_util::sync::CancellationToken;

use super::backend::Backend;
use super::handle::{EngineHandle, Pulse, Submission};
use super::metrics::EngineMetrics;
use super::plan::{Admission, Step, plan};
use super::request::Failure;
use super::sequence::Sequence;
use super::state::{Budget, SequenceId, State, Waiting};
use super::vision_cache::VisionCache;
use crate::error_text::chain;

/// Steps in a row in which the model failed on everything, after which it has
/// to prove that it is not broken for good, as a CUDA device is after a fault.
const BROKEN_AFTER: u32 = 3;

/// How the engine works.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// What the scheduler may spend.
    pub budget: Budget,
    /// Tokens that end an answer.
    pub eos: Vec<u32>,
    /// Where encoded images are kept.
    pub images: VisionCache,
    /// Where figures go.
    pub metrics: EngineMetrics,
}

/// Starts the engine thread.
///
/// # Errors
/// When the system gives no thread.
pub fn start(backend: impl Backend, options: EngineOptions) -> std::io::Result<EngineHandle> {
    let (submissions, inbox) = channel();
    let pulse = Arc::new(Pulse::default());
    let aborted = CancellationToken::new();
    let handle = EngineHandle {
        inbox: submissions,
        pulse: Arc::clone(&pulse),
        aborted: aborted.clone(),
    };
    let state = State::new(options.budget, backend.slots());
    let engine = Engine {
        backend,
        options,
        state,
        sequences: HashMap::new(),
        inbox,
        pulse,
        aborted,
        ids: 0,
        broken: 0,
    };
    std::thread::Builder::new()
        .name("engine".to_owned())
        .spawn(move || engine.run())?;
    Ok(handle)
}

struct Engine<B> {
    backend: B,
    options: EngineOptions,
    state: State,
    sequences: HashMap<SequenceId, Sequence>,
    inbox: Receiver<Submission>,
    pulse: Arc<Pulse>,
    aborted: CancellationToken,
    ids: SequenceId,
    broken: u32,
}

impl<B> Drop for Engine<B> {
    fn drop(&mut self) {
        self.pulse.end();
    }
}

impl<B: Backend> Engine<B> {
    fn run(mut self) {
        while self.receive() {
            let now = clock::now();
            self.pulse.begin_step(now);
            if self.aborted.is_cancelled() {
                self.fail_all(&Failure::Stopping);
            }
            self.drop_abandoned();
            let step = plan(&self.state, now);
            // Who left is gone now, however long the step takes.
            self.show();
            self.execute(&step, now);
            self.show();
            let spent = clock::now().saturating_duration_since(now);
            self.options.metrics.steps.inc();
            self.options
                .metrics
                .step_seconds
                .inc_by(spent.as_secs_f64());
            if self.broken >= BROKEN_AFTER && !self.works_still() {
                self.fail_all(&Failure::Model);
                return;
            }
        }
    }

    /// Takes in what has arrived; blocks at rest. False when nobody can ask any more.
    fn receive(&mut self) -> bool {
        if self.sequences.is_empty() {
            self.pulse.rest();
            match self.inbox.recv() {
                Ok(submission) => self.enqueue(submission),
                Err(_) => return false,
            }
        }
        loop {
            match self.inbox.try_recv() {
                Ok(submission) => self.enqueue(submission),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return !self.sequences.is_empty(),
            }
        }
    }

    fn enqueue(&mut self, submission: Submission) {
        let id = self.ids;
        self.ids += 1;
        let (key, sequence) = Sequence::new(*submission.request, submission.at);
        self.options
            .metrics
            .image_queries
            .inc_by(sequence.images.len() as u64);
        let held = sequence.features.iter().flatten().count();
        self.options.metrics.image_hits.inc_by(held as u64);
        self.state.waiting.push_back(Waiting {
            id,
            tiles: sequence.missing_tiles(&key, 0),
            key,
            started: false,
            deadline: sequence.deadline(),
        });
        self.sequences.insert(id, sequence);
    }

    fn drop_abandoned(&mut self) {
        let left: Vec<SequenceId> = self
            .sequences
            .iter()
            .filter(|(_, sequence)| sequence.is_abandoned())
            .map(|(&id, _)| id)
            .collect();
        for id in left {
            self.state.waiting.retain(|waiting| waiting.id != id);
            self.settle(id);
            self.forget(id, "abort");
        }
    }

    /// Frees the slot of `id`; what it holds stays for others.
    fn settle(&mut self, id: SequenceId) {
        let computed = self.state.running_mut(id).map(|running| running.computed);
        if let (Some(slot), Some(computed)) = (self.state.finish(id), computed) {
            self.backend.truncate(slot, computed);
            self.backend.give_back(slot, computed);
        }
    }

    fn forget(&mut self, id: SequenceId, reason: &'static str) {
        let Some(sequence) = self.sequences.remove(&id) else {
            return;
        };
        let metrics = &self.options.metrics;
        metrics.finish(reason);
        let now = clock::now();
        let since = |from: Instant| now.saturating_duration_since(from).as_secs_f64();
        metrics.request_time.observe(since(sequence.times.arrived));
        if let (Some(first), Some(last)) = (sequence.times.first, sequence.times.last) {
            metrics
                .decode_time
                .observe(last.saturating_duration_since(first).as_secs_f64());
        }
    }

    fn execute(&mut self, step: &Step, now: Instant) {
        for &id in &step.expire {
            self.state.waiting.retain(|waiting| waiting.id != id);
            if let Some(sequence) = self.sequences.get(&id) {
                let waited = now.saturating_duration_since(sequence.times.queued);
                sequence.fail(Failure::Expired(waited));
            }
            self.forget(id, "expired");
        }
        for &id in &step.preempt {
            if let Some(slot) = self.state.preempt(id) {
                self.empty(slot);
                self.options.metrics.preemptions.inc();
            }
        }
        for admission in &step.admit {
            self.admit(admission.clone(), now);
        }
        for &slot in &step.evict {
            self.state.evict(slot);
            self.empty(slot);
        }
        self.encode(&step.encode);
        self.state.note_order(step);
        self.compute(step);
    }

    fn admit(&mut self, mut admission: Admission, now: Instant) {
        let slot = admission.slot;
        match admission.reuse {
            Some((from, tokens)) if from == slot => self.backend.truncate(slot, tokens),
            Some((from, tokens)) => {
                self.backend.truncate(slot, 0);
                if let Err(error) = self.backend.copy_prefix(from, slot, tokens) {
                    tracing::warn!(error = %chain(&error), "cannot reuse a prefix; it is computed again");
                    self.backend.truncate(slot, 0);
                    admission.reuse = None;
                }
            }
            None => self.backend.truncate(slot, 0),
        }
        self.state.admit(&admission);
        // What the slot held before may have been longer than what is counted from now on.
        if let Some(running) = self.state.running_mut(admission.id) {
            self.backend.give_back(slot, running.key.len());
        }
        let Some(sequence) = self.sequences.get_mut(&admission.id) else {
            return;
        };
        let metrics = &self.options.metrics;
        if sequence.times.admitted.is_none() {
            let times = &sequence.times;
            let prepared = times.queued.saturating_duration_since(times.arrived);
            metrics.preparation_time.observe(prepared.as_secs_f64());
            let waited = now.saturating_duration_since(times.queued);
            metrics.queue_time.observe(waited.as_secs_f64());
            metrics.cached_tokens.inc_by(admission.reused() as u64);
        }
        sequence.take_images(|image| self.options.images.get(&image.hash));
        if let Some(running) = self.state.running_mut(admission.id) {
            if sequence.times.admitted.is_none() {
                metrics.prompt_tokens.inc_by(running.key.len() as u64);
            }
            running.tiles = sequence.missing_tiles(&running.key, running.computed);
        }
        sequence.start(admission.reused(), now);
    }

    /// Forgets what a slot holds; its memory is others' to use.
    fn empty(&mut self, slot: usize) {
        self.backend.truncate(slot, 0);
        self.backend.give_back(slot, 0);
    }

    /// Ends a running request whose slot can no longer be trusted.
    fn fail(&mut self, id: SequenceId) {
        if let Some(slot) = self.state.discard(id) {
            self.empty(slot);
        }
        if let Some(sequence) = self.sequences.get(&id) {
            sequence.fail(Failure::Model);
        }
        self.forget(id, "error");
    }

    fn fail_all(&mut self, failure: &Failure) {
        let ids: Vec<SequenceId> = self.sequences.keys().copied().collect();
        self.state.waiting.clear();
        for id in ids {
            if let Some(sequence) = self.sequences.get(&id) {
                sequence.fail(failure.clone());
            }
            self.settle(id);
            self.forget(id, "abort");
        }
        self.show();
    }

    fn count_model_time(&self, began: Instant) {
        let spent = clock::now().saturating_duration_since(began);
        self.options
            .metrics
            .model_seconds
            .inc_by(spent.as_secs_f64());
    }

    fn show(&self) {
        let (running, waiting) = (self.state.running.len(), self.state.waiting.len());
        let used = self.state.committed() as f64 / self.state.budget.kv_tokens.max(1) as f64;
        self.pulse.show(running, waiting, used);
        let metrics = &self.options.metrics;
        metrics
            .running
            .set(i64::try_from(running).unwrap_or(i64::MAX));
        metrics
            .waiting
            .set(i64::try_from(waiting).unwrap_or(i64::MAX));
        metrics.kv_usage.set(used);
    }
}
