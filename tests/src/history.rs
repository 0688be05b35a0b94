//! Everything that happened to the objects of a namespace, in the order in which
//! the API server did it. What a cache or a poll would miss is here: an object
//! that came and went, and how many workers lived at each single revision.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use kube::api::{
    ApiResource, DynamicObject, ListParams, Patch, PatchParams, WatchEvent, WatchParams,
};
use kube::{Api, Client, Resource, ResourceExt};
use tokio::task::JoinHandle;

use crate::cluster::wait_for;

/// How long the record may be behind on a busy machine.
const SOON: Duration = Duration::from_secs(60);

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
    watches: Vec<Watch>,
}

/// The record of one kind.
#[derive(Debug)]
struct Watch {
    kind: String,
    api: Api<DynamicObject>,
    /// It ends only when the API server tells no more.
    task: JoinHandle<()>,
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
            let (events, name) = (events.clone(), kind.kind.clone());
            watches.push(Watch {
                kind: name.clone(),
                api: api.clone(),
                task: tokio::spawn(follow(api, name, start, events)),
            });
        }
        Ok(Self { events, watches })
    }

    /// Waits until all that happened before is recorded: it makes a mark on an
    /// object of each kind, and the record of a kind is in order.
    ///
    /// # Errors
    /// When a watch has ended, or there is no object of a kind to mark.
    pub async fn caught_up(&self) -> anyhow::Result<()> {
        for watch in &self.watches {
            let what = format!("a mark on an object of kind {}", watch.kind);
            let mark = wait_for(&what, SOON, async || watch.mark().await).await?;
            let what = format!("the record of kind {} to reach {mark}", watch.kind);
            let seen = async || {
                let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
                let mut events = events.iter();
                let seen = events.any(|one| one.kind == watch.kind && one.revision >= mark);
                (seen || watch.task.is_finished()).then_some(seen)
            };
            let seen = wait_for(&what, SOON, seen).await?;
            anyhow::ensure!(seen, "the watch of kind {} has ended", watch.kind);
        }
        Ok(())
    }

    /// How many objects came to be, all that did before this call.
    ///
    /// # Errors
    /// As [`caught_up`](Self::caught_up).
    pub async fn created(&self) -> anyhow::Result<usize> {
        self.caught_up().await?;
        let events = self.events();
        let created = events.iter().filter(|event| event.deed == Deed::Created);
        Ok(created.count())
    }

    /// What happened so far, in order; see [`caught_up`](Self::caught_up).
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
        self.watches.iter().for_each(|watch| watch.task.abort());
    }
}

impl Watch {
    /// Changes an annotation that means nothing to anybody, and returns the revision of that.
    async fn mark(&self) -> Option<u64> {
        let one = ListParams::default().limit(1);
        let object = self.api.list(&one).await.ok()?.items.pop()?;
        let mark = serde_json::json!({"tests.llava.dev/mark": object.resource_version()});
        let mark = Patch::Merge(serde_json::json!({"metadata": {"annotations": mark}}));
        let how = PatchParams::default();
        let marked = self.api.patch(&object.name_any(), &how, &mark).await.ok()?;
        marked.resource_version()?.parse().ok()
    }
}

/// Records what happens to the objects of a kind. A connection that ends is followed
/// by another, which goes on where it was.
async fn follow(
    api: Api<DynamicObject>,
    kind: String,
    mut last: String,
    events: Arc<Mutex<Vec<Event>>>,
) {
    let params = WatchParams::default().timeout(290);
    while let Ok(stream) = api.watch(&params, &last).await {
        let mut stream = std::pin::pin!(stream);
        while let Some(Ok(event)) = stream.next().await {
            let (deed, object) = match event {
                WatchEvent::Added(object) => (Deed::Created, object),
                WatchEvent::Modified(object) => (Deed::Changed, object),
                WatchEvent::Deleted(object) => (Deed::Deleted, object),
                WatchEvent::Bookmark(_) => continue,
                WatchEvent::Error(_) => return,
            };
            last = object.resource_version().unwrap_or_default();
            let mut events = events.lock().unwrap_or_else(PoisonError::into_inner);
            events.push(Event {
                revision: last.parse().unwrap_or_default(),
                deed,
                kind: kind.clone(),
                object,
            });
        }
    }
}

/// The kind of a type.
#[must_use]
pub fn kind<K: Resource<DynamicType = ()>>() -> ApiResource {
    ApiResource::erase::<K>(&())
}
