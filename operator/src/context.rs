//! What both controllers share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use kube::ResourceExt;

use crate::backoff::{Backoff, REPLACE, RETRY};
use crate::deployment::memory::Memory;
use crate::effects::Effects;
use crate::expectations::Versions;
use crate::key::Key;
use crate::metrics::Metrics;
use crate::pace::Paces;
use crate::settings::Settings;
use crate::world::World;

/// What both controllers share.
pub struct Context {
    /// What is observed.
    pub world: Arc<World>,
    /// How things are written.
    pub effects: Effects,
    /// What is counted.
    pub metrics: Metrics,
    /// What the command line says.
    pub settings: Settings,
    /// Failed reconciliations, by kind and name.
    pub retries: Backoff<(&'static str, Key)>,
    /// Workers that ended, by deployment.
    pub replacements: Backoff<Key>,
    /// When statuses are written.
    pub paces: Paces,
    /// Statuses that the caches may not show yet.
    pub versions: Versions,
    memories: Mutex<HashMap<Key, Memory>>,
}

impl Context {
    /// A context without memories.
    #[must_use]
    pub fn new(world: Arc<World>, effects: Effects, metrics: Metrics, settings: Settings) -> Self {
        Self {
            world,
            effects,
            metrics,
            settings,
            retries: Backoff::new(RETRY),
            replacements: Backoff::new(REPLACE),
            paces: Paces::default(),
            versions: Versions::default(),
            memories: Mutex::default(),
        }
    }

    /// What is remembered of a deployment between reconciliations.
    pub fn with_memory<T>(&self, deployment: &Key, act: impl FnOnce(&mut Memory) -> T) -> T {
        act(lock(&self.memories).entry(deployment.clone()).or_default())
    }

    /// A deployment is gone.
    pub fn forget(&self, deployment: &Key) {
        lock(&self.memories).remove(deployment);
        self.replacements.forget(deployment);
    }

    /// Whether the cached object lacks the status that was last written to it.
    pub fn is_behind(&self, cached: &impl ResourceExt) -> bool {
        let uid = cached.uid().unwrap_or_default();
        let version = cached.resource_version();
        self.versions
            .is_behind(&uid, version.as_deref(), shell::clock::now())
    }

    /// A status was written; `written` is the API server's answer.
    pub fn wrote_status(&self, written: &impl ResourceExt, now: Instant) {
        let uid = written.uid().unwrap_or_default();
        let version = written.resource_version();
        self.versions.wrote(&uid, version.as_deref(), now);
        self.paces.wrote(&uid, now);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
