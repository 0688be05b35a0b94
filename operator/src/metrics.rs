//! What the operator counts. Each metric is named here and nowhere else.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// How an object is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    /// POST of a new object.
    Create,
    /// Server-side apply.
    Apply,
    /// Update of a status.
    Status,
    /// DELETE.
    Delete,
}

impl Verb {
    /// In lower case, for messages and labels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Apply => "apply",
            Self::Status => "report",
            Self::Delete => "delete",
        }
    }
}

impl EncodeLabelValue for Verb {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        EncodeLabelValue::encode(&self.as_str(), encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Write {
    verb: Verb,
    kind: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabel {
    phase: &'static str,
}

/// All metrics; clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    reconciles: Family<Kind, Counter>,
    reconcile_errors: Family<Kind, Counter>,
    reconcile_duration: Family<Kind, Histogram>,
    reaction: Family<Kind, Histogram>,
    writes: Family<Write, Counter>,
    write_errors: Family<Write, Counter>,
    stale_syncs: Family<Kind, Counter>,
    workers: Family<PhaseLabel, Gauge>,
    leading: Gauge,
}

impl Metrics {
    /// Metrics that the registry shows under the prefix `llava_operator`.
    pub fn register(registry: &mut Registry) -> Self {
        let seconds = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
        let metrics = Self {
            reconciles: Family::default(),
            reconcile_errors: Family::default(),
            reconcile_duration: Family::new_with_constructor(seconds),
            reaction: Family::new_with_constructor(seconds),
            writes: Family::default(),
            write_errors: Family::default(),
            stale_syncs: Family::default(),
            workers: Family::default(),
            leading: Gauge::default(),
        };
        let registry = registry.sub_registry_with_prefix("llava_operator");
        registry.register(
            "reconciles",
            "Reconciliations finished, by kind",
            metrics.reconciles.clone(),
        );
        registry.register(
            "reconcile_errors",
            "Reconciliations that ended with an error, by kind",
            metrics.reconcile_errors.clone(),
        );
        registry.register_with_unit(
            "reconcile_duration",
            "Time of one reconciliation, by kind",
            Unit::Seconds,
            metrics.reconcile_duration.clone(),
        );
        registry.register_with_unit(
            "reaction",
            "Time from the first event that a reconciliation answers to the API server's answer to its first write, by kind; that events gather and caches catch up is part of it; statuses that are put off on purpose are not measured, and the echoes of the operator's own writes only where nothing else asked",
            Unit::Seconds,
            metrics.reaction.clone(),
        );
        registry.register(
            "writes",
            "Writes that the API server took, by verb and kind",
            metrics.writes.clone(),
        );
        registry.register(
            "write_errors",
            "Writes that failed, by verb and kind",
            metrics.write_errors.clone(),
        );
        registry.register(
            "stale_syncs",
            "Reconciliations put off because the cache was behind our own writes or others', by kind",
            metrics.stale_syncs.clone(),
        );
        registry.register("workers", "LlavaWorkers, by phase", metrics.workers.clone());
        registry.register(
            "leading",
            "Whether this process leads",
            metrics.leading.clone(),
        );
        metrics
    }

    /// A reconciliation ended.
    pub fn reconciled(&self, kind: &'static str, took: Duration, failed: bool) {
        self.reconciles.get_or_create(&Kind { kind }).inc();
        if failed {
            self.reconcile_errors.get_or_create(&Kind { kind }).inc();
        }
        self.reconcile_duration
            .get_or_create(&Kind { kind })
            .observe(took.as_secs_f64());
    }

    /// The first write of a reconciliation was answered this long after it was asked for.
    pub fn reacted(&self, kind: &'static str, after: Duration) {
        self.reaction
            .get_or_create(&Kind { kind })
            .observe(after.as_secs_f64());
    }

    /// A write was taken.
    pub fn wrote(&self, verb: Verb, kind: &str) {
        let kind = kind.to_owned();
        self.writes.get_or_create(&Write { verb, kind }).inc();
    }

    /// A write failed.
    pub fn failed(&self, verb: Verb, kind: &str) {
        let kind = kind.to_owned();
        self.write_errors.get_or_create(&Write { verb, kind }).inc();
    }

    /// A reconciliation was put off.
    pub fn stale_sync(&self, kind: &'static str) {
        self.stale_syncs.get_or_create(&Kind { kind }).inc();
    }

    /// How many workers are in a phase.
    pub fn set_workers(&self, phase: &'static str, count: usize) {
        self.workers
            .get_or_create(&PhaseLabel { phase })
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Whether this process leads.
    pub fn set_leading(&self, leading: bool) {
        self.leading.set(i64::from(leading));
    }
}
