//! What both controllers share.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::backoff::{Backoff, REPLACE, RETRY};
use crate::deployment::memory::Memory;
use crate::effects::Effects;
use crate::key::Key;
use crate::metrics::Metrics;
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
    memories: Mutex<HashMap<Key, Memory>>,
    load_written: Mutex<HashMap<String, Instant>>,
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
            memories: Mutex::default(),
            load_written: Mutex::default(),
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

    /// When the status of the object with this UID was last written.
    #[must_use]
    pub fn load_written(&self, uid: &str) -> Option<Instant> {
        lock(&self.load_written).get(uid).copied()
    }

    /// The status of the object with this UID was written.
    pub fn wrote_load(&self, uid: &str, now: Instant) {
        let mut written = lock(&self.load_written);
        written.retain(|_, when| {
            now.saturating_duration_since(*when) < crate::worker::report::LOAD_PERIOD
        });
        written.insert(uid.to_owned(), now);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
