//! Which Pod each worker has had, whether its status tells already or not. A status
//! of a worker that comes up gathers for a moment, and its first Pod may be gone by
//! then; a worker is one life of one Pod, so that it must get no second one. Losing
//! this, as a restart does, loses no more than that moment.

use std::collections::HashMap;

/// UIDs of Pods by those of their workers.
#[derive(Debug, Default)]
pub struct Births {
    pods: HashMap<String, String>,
}

impl Births {
    /// A worker's Pod was created or seen. The first one stays.
    pub fn saw(&mut self, worker: &str, pod: &str) {
        if !self.pods.contains_key(worker) {
            self.pods.insert(worker.to_owned(), pod.to_owned());
        }
    }

    /// The Pod that the worker has had.
    #[must_use]
    pub fn of(&self, worker: &str) -> Option<&str> {
        self.pods.get(worker).map(String::as_str)
    }

    /// The worker is gone.
    pub fn forget(&mut self, worker: &str) {
        self.pods.remove(worker);
    }

    /// Forgets workers that a new list does not hold.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.pods.retain(|worker, _| keep(worker));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_has_had_its_first_pod_until_it_goes_itself() {
        let mut births = Births::default();
        assert_eq!(births.of("w"), None);
        births.saw("w", "first");
        births.saw("w", "second");
        assert_eq!(births.of("w"), Some("first"));
        births.retain(|worker| worker == "w");
        assert_eq!(births.of("w"), Some("first"));
        births.forget("w");
        assert_eq!(births.of("w"), None);
    }
}
