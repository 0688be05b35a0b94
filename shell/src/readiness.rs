//! Readiness as handles: each part that must be up before traffic may come
//! takes one, and the process is ready when all say so. What is missing is named.
//! A process that can only be restarted says so here too.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// All conditions of one process.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    conditions: Arc<Mutex<BTreeMap<String, bool>>>,
    dead: Arc<OnceLock<String>>,
}

/// One condition; not met until [`set`](Self::set) says so, and withdrawn when
/// the handle is dropped.
#[derive(Debug)]
pub struct Condition {
    name: String,
    readiness: Readiness,
}

impl Readiness {
    /// A new condition under a name that `/readyz` shows, not met yet.
    #[must_use]
    pub fn condition(&self, name: &str) -> Condition {
        self.lock().insert(name.to_owned(), false);
        Condition {
            name: name.to_owned(),
            readiness: self.clone(),
        }
    }

    /// The names of the conditions that are not met; empty means ready.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        self.lock()
            .iter()
            .filter(|(_, met)| !**met)
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// The process cannot recover: `/livez` fails from now on, with this reason.
    pub fn give_up(&self, reason: impl Into<String>) {
        // The first reason is the cause.
        let _ = self.dead.set(reason.into());
    }

    /// Why the process cannot recover, if so.
    #[must_use]
    pub fn dead(&self) -> Option<&str> {
        self.dead.get().map(String::as_str)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, bool>> {
        self.conditions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Condition {
    /// Whether the condition is met from now on.
    pub fn set(&self, met: bool) {
        self.readiness.lock().insert(self.name.clone(), met);
    }
}

impl Drop for Condition {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_ready_when_every_condition_is_met() {
        let readiness = Readiness::default();
        let model = readiness.condition("model");
        let listener = readiness.condition("listener");
        model.set(true);
        assert_eq!(readiness.missing(), ["listener"]);
        listener.set(true);
        assert!(readiness.missing().is_empty());
        drop(model);
        assert_eq!(readiness.missing(), ["model"]);
    }
}
