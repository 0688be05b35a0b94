//! Deployments, Pods and Leases joined to a table. A plain struct: events go in,
//! a table comes out, and no order of events gives another table than building
//! it from scratch.

use std::fmt;
use std::time::{Duration, Instant};

use http::uri::Authority;
use protocol::load::LoadReport;

use crate::args::Dispatch;
use crate::table::record::{LeaseRecord, ModelRecord, Table, WorkerRecord};
use crate::table::staged::{Event, Identity, Staged};

/// A router replica whose Lease was not renewed for this long is gone.
const ROUTER_GONE: Duration = Duration::from_secs(15);

/// `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    /// The namespace.
    pub(crate) namespace: String,
    /// The name.
    pub(crate) name: String,
}

/// What the table needs of a LlavaDeployment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Deployment {
    /// Its UID.
    pub(crate) uid: String,
    /// The model's name and aliases.
    pub(crate) names: Vec<String>,
    /// Unix seconds.
    pub(crate) created: i64,
    /// How a worker is picked.
    pub(crate) dispatch: Option<Dispatch>,
}

/// What the table needs of a worker's Pod.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pod {
    /// Its UID: the worker's identity.
    pub(crate) uid: String,
    /// The name of its LlavaDeployment, in the same namespace.
    pub(crate) deployment: String,
    /// Ready and not terminating.
    pub(crate) routable: bool,
    /// Where its API is, once it has an address.
    pub(crate) authority: Option<Authority>,
}

/// What the table needs of a Lease.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Lease {
    /// Its UID.
    pub(crate) uid: String,
    /// The UID of the Pod that holds it.
    pub(crate) holder: Option<String>,
    /// `spec.renewTime` as written; only its change means something.
    pub(crate) renew_time: String,
    /// When this process saw the change.
    pub(crate) seen: Instant,
    /// A worker's load.
    pub(crate) load: Option<LoadReport>,
    /// Whether a router replica of this installation holds it.
    pub(crate) is_router: bool,
}

/// An event of one of the watches.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// Of LlavaDeployments.
    Deployment(Event<Deployment>),
    /// Of Pods.
    Pod(Event<Pod>),
    /// Of Leases.
    Lease(Event<Lease>),
}

/// How soon a change asks for a new table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// There is nothing new to show yet.
    None,
    /// Of many such changes that come together, one new table is enough.
    Soon,
    /// At once: somebody comes, goes or takes nothing more.
    Now,
}

/// Everything that was seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    deployments: Staged<Deployment>,
    pods: Staged<Pod>,
    leases: Staged<Lease>,
}

impl Change {
    /// Whether a list is complete with this.
    pub(crate) fn ends_list(&self) -> bool {
        matches!(
            self,
            Self::Deployment(Event::InitDone)
                | Self::Pod(Event::InitDone)
                | Self::Lease(Event::InitDone)
        )
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl Identity for Deployment {
    fn uid(&self) -> &str {
        &self.uid
    }
}

impl Identity for Pod {
    fn uid(&self) -> &str {
        &self.uid
    }
}

impl Identity for Lease {
    fn uid(&self) -> &str {
        &self.uid
    }
}

impl Index {
    /// Takes one event, and tells how soon it should be seen in the table.
    pub(crate) fn take(&mut self, change: Change) -> Urgency {
        let urgency = match &change {
            Change::Lease(Event::Apply(key, lease)) if !self.changes_phase(key, lease) => {
                Urgency::Soon
            }
            _ => Urgency::Now,
        };
        let is_shown = match change {
            Change::Deployment(event) => self.deployments.take(event, |_, _| {}),
            Change::Pod(event) => self.pods.take(event, |_, _| {}),
            Change::Lease(event) => self.leases.take(event, |known, new| {
                if known.renew_time == new.renew_time {
                    new.seen = known.seen;
                }
            }),
        };
        if is_shown { urgency } else { Urgency::None }
    }

    /// Whether the worker of this Lease begins to drain, say.
    fn changes_phase(&self, key: &Key, lease: &Lease) -> bool {
        let phase = |lease: &Lease| lease.load.as_ref().map(|load| load.phase);
        self.leases.get(key).and_then(phase) != phase(lease)
    }

    /// The table of what is known at `now`.
    pub(crate) fn table(&self, now: Instant) -> Table {
        let models = self.deployments.iter().map(|(key, deployment)| {
            let record = ModelRecord {
                names: deployment.names.clone(),
                created: deployment.created,
                dispatch: deployment.dispatch,
            };
            (key.to_string(), record)
        });
        let workers = self.pods.iter().filter_map(|(key, pod)| {
            let authority = pod.authority.clone().filter(|_| pod.routable)?;
            let record = WorkerRecord {
                model: format!("{}/{}", key.namespace, pod.deployment),
                name: key.name.clone(),
                authority,
                lease: self.lease_of(key, pod),
            };
            Some((pod.uid.clone(), record))
        });
        let alive = |lease: &Lease| {
            lease.is_router && now.saturating_duration_since(lease.seen) < ROUTER_GONE
        };
        let routers = self.leases.iter().filter(|(_, lease)| alive(lease)).count();
        Table {
            synced: self.deployments.is_synced()
                && self.pods.is_synced()
                && self.leases.is_synced(),
            models: models.collect(),
            workers: workers.collect(),
            routers: u32::try_from(routers).unwrap_or(u32::MAX).max(1),
        }
    }

    /// A Lease counts for the Pod that holds it, not for a namesake.
    fn lease_of(&self, key: &Key, pod: &Pod) -> Option<LeaseRecord> {
        let lease = self.leases.get(key)?;
        (lease.holder.as_deref() == Some(&pod.uid)).then(|| LeaseRecord {
            renewed: lease.seen,
            load: lease.load.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use protocol::load::Phase;

    use super::*;

    fn key(name: u8) -> Key {
        Key {
            namespace: "ns".to_owned(),
            name: format!("w{name}"),
        }
    }

    fn deployment(name: u8, life: u8) -> Deployment {
        Deployment {
            uid: format!("d{name}-{life}"),
            names: vec![format!("model{name}")],
            created: life.into(),
            dispatch: None,
        }
    }

    fn pod(name: u8, life: u8) -> Pod {
        Pod {
            uid: format!("p{name}-{life}"),
            deployment: format!("w{}", name % 2),
            routable: !life.is_multiple_of(3),
            authority: Authority::try_from(format!("10.0.0.{name}:8000")).ok(),
        }
    }

    fn lease(name: u8, life: u8, seen: Instant) -> Lease {
        Lease {
            uid: format!("l{name}"),
            holder: Some(format!("p{name}-{life}")),
            renew_time: format!("t{life}"),
            seen,
            load: None,
            is_router: name == 3,
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Apply(u8, u8, u8),
        Delete(u8, u8),
        /// A list begins, and so many of its objects come.
        List(u8, usize),
        /// The rest of the list comes.
        EndList(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0u8..3, 0u8..4, 0u8..4).prop_map(|(k, n, l)| Step::Apply(k, n, l)),
            2 => (0u8..3, 0u8..4).prop_map(|(k, n)| Step::Delete(k, n)),
            1 => (0u8..3, 0usize..4).prop_map(|(k, n)| Step::List(k, n)),
            1 => (0u8..3).prop_map(Step::EndList),
        ];
        prop::collection::vec(step, 0..60)
    }

    /// Objects as an API server has them: kind, name, life.
    type World = BTreeMap<(u8, u8), u8>;

    enum Told {
        Listed,
        Applied,
        Deleted,
    }

    fn object(kind: u8, name: u8, life: u8, now: Instant, told: &Told) -> Change {
        fn event<T: Identity>(key: Key, what: T, told: &Told) -> Event<T> {
            match told {
                Told::Listed => Event::InitApply(key, what),
                Told::Applied => Event::Apply(key, what),
                Told::Deleted => Event::Delete(key, what.uid().to_owned()),
            }
        }
        match kind {
            0 => Change::Deployment(event(key(name), deployment(name, life), told)),
            1 => Change::Pod(event(key(name), pod(name, life), told)),
            _ => Change::Lease(event(key(name), lease(name, life, now), told)),
        }
    }

    fn init(kind: u8) -> Change {
        match kind {
            0 => Change::Deployment(Event::Init),
            1 => Change::Pod(Event::Init),
            _ => Change::Lease(Event::Init),
        }
    }

    fn init_done(kind: u8) -> Change {
        match kind {
            0 => Change::Deployment(Event::InitDone),
            1 => Change::Pod(Event::InitDone),
            _ => Change::Lease(Event::InitDone),
        }
    }

    fn of_kind(world: &World, kind: u8) -> World {
        let of_kind = |object: &(&(u8, u8), &u8)| object.0.0 == kind;
        let objects = world.iter().filter(of_kind);
        objects.map(|(object, life)| (*object, *life)).collect()
    }

    /// An index beside the table that was last made of it, as the watch keeps it.
    struct Watched {
        index: Index,
        shown: Table,
        now: Instant,
        /// Lists under way by kind: what they hold, and how much of it came.
        lists: BTreeMap<u8, (World, usize)>,
    }

    impl Watched {
        fn new(now: Instant, world: &World) -> Self {
            let index = Index::default();
            let shown = index.table(now);
            let mut watched = Self {
                index,
                shown,
                now,
                lists: BTreeMap::new(),
            };
            for kind in 0..3 {
                watched.begin_list(kind, world, 0);
                watched.end_list(kind, world);
            }
            watched
        }

        fn take(&mut self, change: Change) {
            if self.index.take(change) != Urgency::None {
                self.shown = self.index.table(self.now);
            }
        }

        fn tell(&mut self, (kind, name): (u8, u8), life: u8, told: &Told) {
            self.take(object(kind, name, life, self.now, told));
        }

        fn begin_list(&mut self, kind: u8, world: &World, come: usize) {
            self.take(init(kind));
            let list = of_kind(world, kind);
            for (&name, &life) in list.iter().take(come) {
                self.tell(name, life, &Told::Listed);
            }
            self.lists.insert(kind, (list, come));
        }

        /// The rest of a list, and then what became other than it says meanwhile.
        fn end_list(&mut self, kind: u8, world: &World) {
            let Some((list, came)) = self.lists.remove(&kind) else {
                return;
            };
            for (&name, &life) in list.iter().skip(came) {
                self.tell(name, life, &Told::Listed);
            }
            self.take(init_done(kind));
            let world = of_kind(world, kind);
            for (name, life) in list.iter().filter(|(name, _)| !world.contains_key(name)) {
                self.tell(*name, *life, &Told::Deleted);
            }
            for (name, life) in world
                .iter()
                .filter(|(name, life)| list.get(name) != Some(life))
            {
                self.tell(*name, *life, &Told::Applied);
            }
        }

        /// A watch says nothing of its kind while it lists.
        fn change(&mut self, name: (u8, u8), life: u8, told: &Told) {
            if !self.lists.contains_key(&name.0) {
                self.tell(name, life, told);
            }
        }
    }

    proptest! {
        #[test]
        fn any_order_of_events_gives_the_table_of_a_rebuild(steps in steps()) {
            let now = shell::clock::now();
            let mut world = World::new();
            let mut watched = Watched::new(now, &world);
            for step in steps {
                match step {
                    Step::Apply(kind, name, life) => {
                        world.insert((kind, name), life);
                        watched.change((kind, name), life, &Told::Applied);
                    }
                    Step::Delete(kind, name) => {
                        if let Some(life) = world.remove(&(kind, name)) {
                            watched.change((kind, name), life, &Told::Deleted);
                        }
                    }
                    // One that was under way is given up.
                    Step::List(kind, come) => watched.begin_list(kind, &world, come),
                    Step::EndList(kind) => watched.end_list(kind, &world),
                }
                prop_assert_eq!(&watched.shown, &watched.index.table(now));
            }
            for kind in 0..3 {
                watched.end_list(kind, &world);
            }
            prop_assert_eq!(watched.shown, Watched::new(now, &world).shown);
        }
    }

    #[test]
    fn renewals_can_wait_a_little_and_whoever_comes_or_goes_cannot() {
        let now = shell::clock::now();
        let mut index = Index::default();
        let mut with_phase = |phase| {
            let load = LoadReport {
                phase,
                ..LoadReport::default()
            };
            let mut lease = lease(1, 1, now);
            lease.load = Some(load);
            index.take(Change::Lease(Event::Apply(key(1), lease)))
        };
        assert_eq!(with_phase(Phase::Serving), Urgency::Now);
        assert_eq!(with_phase(Phase::Serving), Urgency::Soon);
        assert_eq!(with_phase(Phase::Draining), Urgency::Now);
        let mut take = |change| index.take(change);
        assert_eq!(
            take(Change::Pod(Event::Apply(key(1), pod(1, 1)))),
            Urgency::Now
        );
        assert_eq!(take(Change::Pod(Event::Init)), Urgency::None);
        assert_eq!(take(object(1, 2, 1, now, &Told::Listed)), Urgency::None);
        assert_eq!(take(Change::Pod(Event::InitDone)), Urgency::Now);
    }

    #[test]
    fn a_late_delete_of_an_old_pod_leaves_the_new_one() {
        let mut index = Index::default();
        index.take(Change::Pod(Event::Apply(key(1), pod(1, 2))));
        index.take(Change::Pod(Event::Delete(key(1), pod(1, 1).uid)));
        assert_eq!(index.table(shell::clock::now()).workers.len(), 1);
    }

    #[test]
    fn a_terminating_pod_is_out_at_once() {
        let mut index = Index::default();
        let mut leaving = pod(1, 1);
        index.take(Change::Pod(Event::Apply(key(1), leaving.clone())));
        assert_eq!(index.table(shell::clock::now()).workers.len(), 1);
        leaving.routable = false;
        index.take(Change::Pod(Event::Apply(key(1), leaving)));
        assert!(index.table(shell::clock::now()).workers.is_empty());
    }

    #[test]
    fn a_lease_ages_from_the_change_of_its_renew_time_and_only_for_its_holder() {
        let start = shell::clock::now();
        let mut index = Index::default();
        index.take(Change::Pod(Event::Apply(key(1), pod(1, 1))));
        index.take(Change::Lease(Event::Apply(key(1), lease(1, 1, start))));
        let later = start + Duration::from_secs(9);
        index.take(Change::Lease(Event::Apply(key(1), lease(1, 1, later))));
        let table = index.table(later);
        assert_eq!(table.workers["p1-1"].lease.as_ref().unwrap().renewed, start);
        index.take(Change::Lease(Event::Apply(key(1), lease(1, 2, later))));
        assert_eq!(index.table(later).workers["p1-1"].lease, None);
    }

    #[test]
    fn router_replicas_are_those_with_a_fresh_lease() {
        let start = shell::clock::now();
        let mut index = Index::default();
        index.take(Change::Lease(Event::Apply(key(3), lease(3, 1, start))));
        let mut other = lease(3, 1, start);
        other.uid = "l9".to_owned();
        index.take(Change::Lease(Event::Apply(key(9), other)));
        assert_eq!(index.table(start).routers, 2);
        assert_eq!(index.table(start + ROUTER_GONE).routers, 1);
    }
}
