//! The table that every source publishes and that dispatch reads: plain records,
//! without a trace of where they come from.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::uri::Authority;
use protocol::load::LoadReport;

use crate::args::Dispatch;

/// Models and workers as they are known now.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Table {
    /// Whether the source has told all that it knows.
    pub(crate) synced: bool,
    /// By key: `namespace/name` of the LlavaDeployment, or the model's name in a
    /// fixed table.
    pub(crate) models: BTreeMap<String, ModelRecord>,
    /// By identity: the Pod's UID, or the URL.
    pub(crate) workers: BTreeMap<String, WorkerRecord>,
    /// Router replicas that are ready, this one included.
    pub(crate) routers: u32,
}

/// A model that clients may ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ModelRecord {
    /// The names that clients use; the first one is listed.
    pub(crate) names: Vec<String>,
    /// Unix seconds; the older model keeps a name that two claim.
    pub(crate) created: i64,
    /// How a worker is picked, where the model says so itself.
    pub(crate) dispatch: Option<Dispatch>,
}

/// A worker that may be sent requests: ready and not terminating.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct WorkerRecord {
    /// The key of its model.
    pub(crate) model: String,
    /// For people.
    pub(crate) name: String,
    /// Where its API is.
    pub(crate) authority: Authority,
    /// What its Lease says; `None` where there is none.
    pub(crate) lease: Option<LeaseRecord>,
}

/// A worker's Lease.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LeaseRecord {
    /// When this process saw it renewed.
    pub(crate) renewed: Instant,
    /// The load in its annotation, if it reads.
    pub(crate) load: Option<LoadReport>,
}

/// How the source of the table does, for metrics.
#[derive(Debug)]
pub(crate) struct Discovery {
    start: Instant,
    last_event_millis: AtomicU64,
    relists: AtomicU64,
}

impl Discovery {
    /// A source that starts now.
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            start: now,
            last_event_millis: AtomicU64::new(0),
            relists: AtomicU64::new(0),
        }
    }

    /// The source spoke.
    pub(crate) fn event(&self, is_relist: bool, now: Instant) {
        let millis = now.saturating_duration_since(self.start).as_millis();
        let millis = u64::try_from(millis).unwrap_or(u64::MAX);
        self.last_event_millis.store(millis, Ordering::Relaxed);
        self.relists.fetch_add(is_relist.into(), Ordering::Relaxed);
    }

    /// Since the source last spoke.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        let last = Duration::from_millis(self.last_event_millis.load(Ordering::Relaxed));
        now.saturating_duration_since(self.start + last)
    }

    /// Lists taken so far.
    pub(crate) fn relists(&self) -> u64 {
        self.relists.load(Ordering::Relaxed)
    }
}
