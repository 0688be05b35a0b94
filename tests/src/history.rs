//! Everything that happened to the objects of a namespace, in the order in which
//! the API server did it. What a cache or a poll would miss is here: an object
//! that came and went, and how many workers lived at each single revision.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use kube::api::{ApiResource, DynamicObject, ListParams, WatchEvent, WatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use tokio::task::JoinHandle;

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// It came to be.
    Created,
    /// It changed.
    Changed,
    /// It went.
    Deleted,
}

/// One change of one object.
#[derive(Clone, Debug)]
pub struct Event {
    /// The revision of the whole cluster's state.
    pub revision: u64,
    /// What happened.
    pub deed: Deed,
    /// The object's kind.
    pub kind: String,
    /// The object then.
    pub object: DynamicObject,
}

/// A record in the making.
#[derive(Debug)]
pub struct History {
    events: Arc<Mutex<Vec<Event>>>,
    watches: Vec<JoinHandle<()>>,
}

impl History {
    /// Starts recording the objects of these kinds. What exists already is not part of it.
    ///
    /// # Errors
    /// When the API server cannot be asked.
    pub async fn record(
        client: &Client,
        namespace: &str,
        kinds: &[ApiResource],
    ) -> anyhow::Result<Self> {
        let events = Arc::<Mutex<Vec<Event>>>::default();
        let mut watches = Vec::new();
        for kind in kinds {
            let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, kind);
            let now = api.list(&ListParams::default().limit(1)).await?;
            let start = now.metadata.resource_version.unwrap_or_default();
            let (events, kind) = (events.clone(), kind.kind.clone());
            watches.push(tokio::spawn(async move {
                let params = WatchParams::default().timeout(290);
                let Ok(stream) = api.watch(&params, &start).await else {
                    return;
                };
                let mut stream = std::pin::pin!(stream);
                while let Some(Ok(event)) = stream.next().await {
                    let (deed, object) = match event {
                        WatchEvent::Added(object) => (Deed::Created, object),
                        WatchEvent::Modified(object) => (Deed::Changed, object),
                        WatchEvent::Deleted(object) => (Deed::Deleted, object),
                        WatchEvent::Bookmark(_) | WatchEvent::Error(_) => continue,
                    };
                    let revision = object.resource_version().and_then(|text| text.parse().ok());
                    let mut events = events.lock().unwrap_or_else(PoisonError::into_inner);
                    events.push(Event {
                        revision: revision.unwrap_or_default(),
                        deed,
                        kind: kind.clone(),
                        object,
                    });
                }
            }));
        }
        Ok(Self { events, watches })
    }

    /// What happened so far, in order.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        let mut events = self
            .events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        events.sort_by_key(|event| event.revision);
        events
    }

    /// How often each object was created and deleted, by kind and name.
    #[must_use]
    pub fn lives(&self) -> BTreeMap<String, (usize, usize)> {
        let mut lives = BTreeMap::<String, (usize, usize)>::new();
        for event in self.events() {
            let life = lives
                .entry(format!("{}/{}", event.kind, event.object.name_any()))
                .or_default();
            match event.deed {
                Deed::Created => life.0 += 1,
                Deed::Deleted => life.1 += 1,
                Deed::Changed => {}
            }
        }
        lives.retain(|_, life| *life != (0, 0));
        lives
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.watches.iter().for_each(JoinHandle::abort);
    }
}

/// The kind of a type.
#[must_use]
pub fn kind<K: Resource<DynamicType = ()>>() -> ApiResource {
    ApiResource::erase::<K>(&())
}
