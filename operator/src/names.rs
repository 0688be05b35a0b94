//! The names of one kind's objects in order, so that those of one deployment are
//! found without looking at all the others. Names of workers and Pods begin with
//! the deployment's.

use std::collections::BTreeSet;

use crate::key::Key;

/// Names in order.
#[derive(Debug, Default)]
pub struct Names {
    all: BTreeSet<Key>,
}

impl Names {
    /// An object was seen.
    pub fn apply(&mut self, key: Key) {
        self.all.insert(key);
    }

    /// An object is gone.
    pub fn delete(&mut self, key: &Key) {
        self.all.remove(key);
    }

    /// A new list holds these and no others.
    pub fn reset(&mut self, all: impl IntoIterator<Item = Key>) {
        self.all = all.into_iter().collect();
    }

    /// Names that a deployment's workers may have. Another deployment's may be
    /// among them: `llava-7b` begins like a worker of `llava`.
    #[must_use]
    pub fn of(&self, deployment: &Key) -> Vec<Key> {
        let prefix = Key::new(&deployment.namespace, format!("{}-", deployment.name));
        self.all
            .range(&prefix..)
            .take_while(|key| {
                key.namespace == prefix.namespace && key.name.starts_with(&prefix.name)
            })
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_deployment_are_found_among_those_of_others() {
        let mut names = Names::default();
        let keys = [
            ("a", "llava-x-0"),
            ("b", "llava"),
            ("b", "llava-7b-x-0"),
            ("b", "llava-x-0"),
            ("b", "llavas-x-0"),
            ("c", "llava-x-0"),
        ];
        names.reset(keys.map(|(namespace, name)| Key::new(namespace, name)));
        names.apply(Key::new("b", "llava-x-1"));
        names.delete(&Key::new("b", "llava-x-0"));
        let found = names.of(&Key::new("b", "llava"));
        let found: Vec<&str> = found.iter().map(|key| key.name.as_str()).collect();
        assert_eq!(found, ["llava-7b-x-0", "llava-x-1"]);
    }
}
