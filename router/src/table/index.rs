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
    /// Takes one event.
    pub(crate) fn take(&mut self, change: Change) {
        match change {
            Change::Deployment(event) => self.deployments.take(event, |_, _| {}),
            Change::Pod(event) => self.pods.take(event, |_, _| {}),
            Change::Lease(event) => self.leases.take(event, |known, new| {
                if known.renew_time == new.renew_time {
                    new.seen = known.seen;
                }
            }),
        }
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
    use proptest::prelude::*;

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
        Relist(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0u8..3, 0u8..4, 0u8..4).prop_map(|(k, n, l)| Step::Apply(k, n, l)),
            2 => (0u8..3, 0u8..4).prop_map(|(k, n)| Step::Delete(k, n)),
            1 => (0u8..3).prop_map(Step::Relist),
        ];
        prop::collection::vec(step, 0..40)
    }

    /// The world as an API server would have it: kind, name, life.
    type World = std::collections::BTreeMap<(u8, u8), u8>;

    fn object(kind: u8, name: u8, life: u8, now: Instant, wrap: impl Fn(u8) -> u8) -> Change {
        let key = key(name);
        match (kind, wrap(0)) {
            (0, 0) => Change::Deployment(Event::Apply(key, deployment(name, life))),
            (0, 1) => Change::Deployment(Event::InitApply(key, deployment(name, life))),
            (0, _) => Change::Deployment(Event::Delete(key, deployment(name, life).uid)),
            (1, 0) => Change::Pod(Event::Apply(key, pod(name, life))),
            (1, 1) => Change::Pod(Event::InitApply(key, pod(name, life))),
            (1, _) => Change::Pod(Event::Delete(key, pod(name, life).uid)),
            (_, 0) => Change::Lease(Event::Apply(key, lease(name, life, now))),
            (_, 1) => Change::Lease(Event::InitApply(key, lease(name, life, now))),
            (_, _) => Change::Lease(Event::Delete(key, lease(name, life, now).uid)),
        }
    }

    fn relist(index: &mut Index, kind: u8, world: &World, now: Instant) {
        index.take(match kind {
            0 => Change::Deployment(Event::Init),
            1 => Change::Pod(Event::Init),
            _ => Change::Lease(Event::Init),
        });
        for (&(of, name), &life) in world {
            if of == kind {
                index.take(object(kind, name, life, now, |_| 1));
            }
        }
        index.take(match kind {
            0 => Change::Deployment(Event::InitDone),
            1 => Change::Pod(Event::InitDone),
            _ => Change::Lease(Event::InitDone),
        });
    }

    proptest! {
        #[test]
        fn any_order_of_events_gives_the_table_of_a_rebuild(steps in steps()) {
            let now = shell::clock::now();
            let mut world = World::new();
            let mut index = Index::default();
            for kind in 0..3 {
                relist(&mut index, kind, &world, now);
            }
            for step in steps {
                match step {
                    Step::Apply(kind, name, life) => {
                        world.insert((kind, name), life);
                        index.take(object(kind, name, life, now, |_| 0));
                    }
                    Step::Delete(kind, name) => {
                        if let Some(life) = world.remove(&(kind, name)) {
                            index.take(object(kind, name, life, now, |_| 2));
                        }
                    }
                    Step::Relist(kind) => relist(&mut index, kind, &world, now),
                }
            }
            let mut rebuilt = Index::default();
            for kind in 0..3 {
                relist(&mut rebuilt, kind, &world, now);
            }
            prop_assert_eq!(index.table(now), rebuilt.table(now));
        }
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
