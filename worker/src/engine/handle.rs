//! The engine from outside: hand in requests, see its load, tell whether it
//! still moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use shell::clock;
use tokio_util::sync::CancellationToken;

use super::request::{Failure, Request};

/// A request on its way into the engine.
#[derive(Debug)]
pub(super) struct Submission {
    /// What is asked.
    pub request: Box<Request>,
    /// When it was handed in.
    pub at: Instant,
}

/// A way to the engine thread. The engine ends when the last one is dropped.
#[derive(Clone, Debug)]
pub struct EngineHandle {
    pub(super) inbox: Sender<Submission>,
    pub(super) pulse: Arc<Pulse>,
    /// Cancelled when everything is to end.
    pub(super) aborted: CancellationToken,
}

/// What the engine shows of itself after each step.
#[derive(Debug)]
pub struct Pulse {
    start: Instant,
    /// Milliseconds from `start` to the begin of the step that is under way, plus one; 0 at rest.
    step_began: AtomicU64,
    running: AtomicU32,
    waiting: AtomicU32,
    kv_permille: AtomicU32,
    ended: AtomicBool,
}

impl Default for Pulse {
    fn default() -> Self {
        Self {
            start: clock::now(),
            step_began: AtomicU64::new(0),
            running: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            kv_permille: AtomicU32::new(0),
            ended: AtomicBool::new(false),
        }
    }
}

impl Pulse {
    pub(super) fn begin_step(&self, now: Instant) {
        let since = now.saturating_duration_since(self.start).as_millis();
        self.step_began.store(
            u64::try_from(since).unwrap_or(u64::MAX - 1) + 1,
            Ordering::Release,
        );
    }

    pub(super) fn rest(&self) {
        self.step_began.store(0, Ordering::Release);
    }

    pub(super) fn show(&self, running: usize, waiting: usize, kv_used: f64) {
        let count = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        self.running.store(count(running), Ordering::Relaxed);
        self.waiting.store(count(waiting), Ordering::Relaxed);
        self.kv_permille
            .store((kv_used * 1000.0) as u32, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Sequences that hold a slot.
    #[must_use]
    pub fn running(&self) -> u32 {
        self.running.load(Ordering::Relaxed)
    }

    /// Sequences in the engine's queue.
    #[must_use]
    pub fn waiting(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Share of the KV memory that running sequences hold.
    #[must_use]
    pub fn kv_used(&self) -> f32 {
        self.kv_permille.load(Ordering::Relaxed) as f32 / 1000.0
    }

    /// How long the step under way has taken; `None` at rest.
    #[must_use]
    pub fn stuck_for(&self, now: Instant) -> Option<Duration> {
        let began = self.step_began.load(Ordering::Acquire).checked_sub(1)?;
        let began = self.start + Duration::from_millis(began);
        Some(now.saturating_duration_since(began))
    }

    /// Whether the engine thread is gone.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

impl EngineHandle {
    /// Hands in a request; its events go where it says.
    ///
    /// # Errors
    /// [`Failure::Gone`] when the engine thread has ended, [`Failure::Stopping`] after [`Self::abort`].
    pub fn submit(&self, request: Request) -> Result<(), Failure> {
        if self.aborted.is_cancelled() {
            return Err(Failure::Stopping);
        }
        self.inbox
            .send(Submission {
                request: Box::new(request),
                at: clock::now(),
            })
            .map_err(|_| Failure::Gone)
    }

    /// Ends everything that runs or waits, and whatever is handed in later, with
    /// [`Failure::Stopping`]. The engine does so after the step under way.
    pub fn abort(&self) {
        self.aborted.cancel();
    }

    /// Comes true with [`Self::abort`], however long the step under way takes.
    pub async fn aborted(&self) {
        self.aborted.cancelled().await;
    }

    /// What the engine shows of itself.
    #[must_use]
    pub fn pulse(&self) -> &Pulse {
        &self.pulse
    }
}
