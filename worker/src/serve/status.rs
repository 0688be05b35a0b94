//! Where the process stands and what load it carries: one source for the load
//! header, `/v1/load`, the Lease and the admin port.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use protocol::load::{LoadReport, Phase};
use serde::Serialize;
use shell::clock;
use tokio::sync::watch;

use super::gate::Gate;
use crate::engine::EngineHandle;

/// Shared by everything that shows or changes the state of the process.
#[derive(Clone, Debug)]
pub(super) struct Status {
    phase: Arc<watch::Sender<Phase>>,
    serving: Arc<OnceLock<Serving>>,
    progress: Arc<AtomicU32>,
    steps: Arc<Mutex<Vec<Step>>>,
    seconds: Family<StepLabel, Gauge<f64, AtomicU64>>,
}

/// A step of the start that is done.
#[derive(Clone, Debug, Serialize)]
struct Step {
    step: &'static str,
    seconds: f64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabel {
    phase: &'static str,
}

/// What the admin port shows under `/status`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Description {
    load: LoadReport,
    /// Share of the weights that is read, 0 to 1.
    loaded: f32,
    /// Steps of the start that are done: `fetch`, `map`, `load`, `warm_up`.
    steps: Vec<Step>,
}

#[derive(Debug)]
struct Serving {
    engine: EngineHandle,
    gate: Gate,
    slots: usize,
    load_seconds: f32,
}

impl Default for Status {
    fn default() -> Self {
        Self {
            phase: Arc::new(watch::Sender::new(Phase::Loading)),
            serving: Arc::new(OnceLock::new()),
            progress: Arc::new(AtomicU32::new(0)),
            steps: Arc::default(),
            seconds: Family::default(),
        }
    }
}

impl Status {
    /// Changes the phase; whoever follows it is told at once.
    pub(super) fn enter(&self, phase: Phase) {
        self.phase.send_replace(phase);
    }

    /// The phase now, and its changes.
    #[must_use]
    pub(super) fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// From now on the report has the engine's figures.
    pub(super) fn serve(&self, engine: EngineHandle, gate: Gate, slots: usize, load_seconds: f32) {
        // Only the first call counts; there is one engine a process.
        let _ = self.serving.set(Serving {
            engine,
            gate,
            slots,
            load_seconds,
        });
    }

    /// Notes how much of the weights is read.
    pub(super) fn progress(&self, share: f64) {
        self.progress
            .store((share * 1000.0) as u32, Ordering::Relaxed);
    }

    /// Notes that a step of the start that began at `began` is done, for the
    /// log, the metrics and the admin port.
    pub(super) fn done(&self, step: &'static str, began: Instant) {
        let seconds = clock::now().saturating_duration_since(began).as_secs_f64();
        tracing::info!(step, seconds, "a step of the start is done");
        let label = StepLabel { phase: step };
        self.seconds.get_or_create(&label).set(seconds);
        let mut steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        steps.push(Step { step, seconds });
    }

    /// Makes the steps of the start visible as a metric.
    pub(super) fn register(&self, to: &mut Registry) {
        to.register_with_unit(
            "llava_worker_start_phase",
            "How long each step of the start took",
            Unit::Seconds,
            self.seconds.clone(),
        );
    }

    /// For people who look at a process that does not answer yet.
    #[must_use]
    pub(super) fn describe(&self) -> Description {
        Description {
            load: self.load(),
            loaded: self.progress.load(Ordering::Relaxed) as f32 / 1000.0,
            steps: self
                .steps
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        }
    }

    /// The load at this instant.
    #[must_use]
    pub(super) fn load(&self) -> LoadReport {
        let mut report = LoadReport {
            phase: *self.phase.borrow(),
            captured_at_ms: clock::unix_millis(),
            ..LoadReport::default()
        };
        if let Some(serving) = self.serving.get() {
            let count = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
            let pulse = serving.engine.pulse();
            report.running = pulse.running();
            // Those whose body is still read wait as well.
            report.waiting = count(serving.gate.held()).saturating_sub(report.running);
            report.slots = count(serving.slots);
            report.kv_used = pulse.kv_used();
            report.load_seconds = Some(serving.load_seconds);
        }
        report
    }
}
