//! Objects of one kind as a watch tells of them. A relist is gathered aside and
//! replaces what was known in one step, so that nothing is missed and nothing
//! vanishes for a moment while it runs.

use std::collections::BTreeMap;

use crate::table::index::Key;

/// What a watch tells.
#[derive(Clone, Debug)]
pub(crate) enum Event<T> {
    /// A list begins.
    Init,
    /// An object of the list.
    InitApply(Key, T),
    /// An object of the list, with its UID, that does not read: what is known of it stands.
    InitKeep(Key, String),
    /// The list is complete: what it lacks is gone.
    InitDone,
    /// An object is new or changed.
    Apply(Key, T),
    /// The object with this UID is gone.
    Delete(Key, String),
}

/// Something that another object of the same name may replace.
pub(crate) trait Identity {
    /// Its UID.
    fn uid(&self) -> &str;
}

/// Objects of one kind.
#[derive(Clone, Debug)]
pub(crate) struct Staged<T> {
    current: BTreeMap<Key, T>,
    incoming: Option<BTreeMap<Key, T>>,
    synced: bool,
}

impl<T> Default for Staged<T> {
    fn default() -> Self {
        Self {
            current: BTreeMap::new(),
            incoming: None,
            synced: false,
        }
    }
}

impl<T: Identity + Clone> Staged<T> {
    /// Takes one event, and tells whether what is known may be another thing now. `merge`
    /// brings over what is known of an object already.
    pub(crate) fn take(&mut self, event: Event<T>, merge: impl Fn(&T, &mut T)) -> bool {
        let is_shown = !matches!(
            event,
            Event::Init | Event::InitApply(..) | Event::InitKeep(..)
        );
        match event {
            Event::Init => self.incoming = Some(BTreeMap::new()),
            Event::InitApply(key, mut object) => {
                if let Some(known) = self.current.get(&key) {
                    merge(known, &mut object);
                }
                self.incoming.get_or_insert_default().insert(key, object);
            }
            Event::InitKeep(key, uid) => {
                let known = self.get(&key).filter(|known| known.uid() == uid);
                if let Some(known) = known.cloned() {
                    self.incoming.get_or_insert_default().insert(key, known);
                }
            }
            Event::InitDone => {
                if let Some(incoming) = self.incoming.take() {
                    self.current = incoming;
                    self.synced = true;
                }
            }
            Event::Apply(key, mut object) => {
                if let Some(known) = self.current.get(&key) {
                    merge(known, &mut object);
                }
                self.current.insert(key, object);
            }
            Event::Delete(key, uid) => {
                if self.get(&key).is_some_and(|known| known.uid() == uid) {
                    self.current.remove(&key);
                }
            }
        }
        is_shown
    }

    /// Whether a whole list was seen.
    pub(crate) fn is_synced(&self) -> bool {
        self.synced
    }

    /// All objects.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Key, &T)> {
        self.current.iter()
    }

    /// One object.
    pub(crate) fn get(&self, key: &Key) -> Option<&T> {
        self.current.get(key)
    }
}
