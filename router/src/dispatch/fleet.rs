//! All pools, and which names lead to which: what the table says, turned into
//! what dispatch works on. Each worker is looked after by one task that asks for
//! its load and thereby for its health.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use http::HeaderValue;
use protocol::load::Demand;
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use crate::dispatch::member::Worker;
use crate::dispatch::pool::{Pool, Rules};
use crate::probe::{self, Pace};
use crate::table::record::{Table, WorkerRecord};
use crate::upstream::link::Links;

/// All pools.
#[derive(Debug)]
pub(crate) struct Fleet {
    rules: Rules,
    pace: Pace,
    worker_key: Option<HeaderValue>,
    directory: RwLock<Arc<Directory>>,
    workers: Mutex<BTreeMap<String, Tended>>,
    /// Notified when the first request is held for a model without workers.
    pub(crate) held: Arc<Notify>,
}

/// What clients may ask for.
#[derive(Debug, Default)]
pub(crate) struct Directory {
    by_name: HashMap<String, Arc<Pool>>,
    /// Pools by key.
    pub(crate) pools: BTreeMap<String, Arc<Pool>>,
    /// The listed name and age of each model, in the order of names.
    pub(crate) listed: BTreeMap<String, i64>,
    /// The age of each model by the key of its pool.
    pub(crate) created: BTreeMap<String, i64>,
}

#[derive(Debug)]
struct Tended {
    worker: Arc<Worker>,
    model: String,
    pool: Arc<Pool>,
    _probe: AbortOnDropHandle<()>,
}

impl Directory {
    /// The pool of a model by any of its names.
    pub(crate) fn pool(&self, name: &str) -> Option<&Arc<Pool>> {
        self.by_name.get(name)
    }
}

impl Fleet {
    /// An empty fleet. Workers are shown `worker_key`.
    pub(crate) fn new(rules: Rules, pace: Pace, worker_key: Option<HeaderValue>) -> Self {
        Self {
            rules,
            pace,
            worker_key,
            directory: RwLock::default(),
            workers: Mutex::default(),
            held: Arc::default(),
        }
    }

    /// What clients may ask for now.
    pub(crate) fn directory(&self) -> Arc<Directory> {
        Arc::clone(
            &self
                .directory
                .read()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// Workers known.
    pub(crate) fn worker_count(&self) -> usize {
        self.workers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// What is in flight and what waits, by pool; pools at rest are left out.
    pub(crate) fn demand(&self) -> BTreeMap<String, Demand> {
        let directory = self.directory();
        let demand = directory
            .pools
            .iter()
            .map(|(key, pool)| (key.clone(), pool.demand()));
        demand.filter(|(_, d)| *d != Demand::default()).collect()
    }

    /// Makes the fleet what the table says. Must be called within a runtime,
    /// where the probes run.
    pub(crate) fn apply(&self, table: &Table, now: Instant) {
        let old = self.directory();
        let pools: BTreeMap<String, Arc<Pool>> = table
            .models
            .keys()
            .map(|key| {
                let pool = old.pools.get(key).cloned();
                let new = || Pool::new(key.clone(), self.rules.clone(), Arc::clone(&self.held));
                (key.clone(), pool.unwrap_or_else(new))
            })
            .collect();
        let mut by_age: Vec<_> = table.models.iter().collect();
        by_age.sort_by_key(|(key, model)| (model.created, *key));
        let mut directory = Directory::default();
        for (key, model) in by_age {
            let pool = &pools[key];
            directory.created.insert(key.clone(), model.created);
            if let Some(name) = model.names.first() {
                directory
                    .listed
                    .entry(name.clone())
                    .or_insert(model.created);
            }
            for name in model.names.iter().chain([key]) {
                let free = directory.by_name.entry(name.clone());
                free.or_insert_with(|| Arc::clone(pool));
            }
        }
        self.tend(table, &pools, &old.pools, now);
        directory.pools = pools;
        *self
            .directory
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(directory);
    }

    fn tend(
        &self,
        table: &Table,
        pools: &BTreeMap<String, Arc<Pool>>,
        old_pools: &BTreeMap<String, Arc<Pool>>,
        now: Instant,
    ) {
        let mut tended = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        tended.retain(|uid, one| {
            table.workers.get(uid).is_some_and(|record| {
                record.model == one.model && same_address(&one.worker, record)
            }) && pools
                .get(&one.model)
                // A deployment that was made again has a pool of its own.
                .is_none_or(|pool| Arc::ptr_eq(pool, &one.pool))
        });
        for (uid, record) in &table.workers {
            let Some(pool) = pools.get(&record.model) else {
                continue;
            };
            tended
                .entry(uid.clone())
                .or_insert_with(|| self.take_on(uid, record, pool, now));
        }
        let mut members: HashMap<&str, Vec<_>> = HashMap::new();
        for one in tended.values() {
            let lease = table.workers[&one.worker.uid].lease.as_ref();
            let member = (Arc::clone(&one.worker), lease.map(|lease| lease.renewed));
            members.entry(&one.model).or_default().push(member);
        }
        for (key, pool) in pools {
            let members = members.remove(key.as_str()).unwrap_or_default();
            pool.set_members(&members, table.models[key].dispatch, table.routers, now);
        }
        for (uid, record) in &table.workers {
            if let (Some(one), Some(lease)) = (tended.get(uid), &record.lease)
                && let Some(load) = &lease.load
            {
                let own = one.pool.own(&one.worker);
                one.pool
                    .reported(&one.worker, load.clone(), own, lease.renewed);
            }
        }
        for (key, pool) in old_pools {
            if !pools.contains_key(key) {
                pool.close();
            }
        }
    }

    fn take_on(&self, uid: &str, record: &WorkerRecord, pool: &Arc<Pool>, now: Instant) -> Tended {
        let links = Links::new(&record.authority, self.worker_key.clone());
        let worker = Arc::new(Worker::new(uid.to_owned(), record.name.clone(), links, now));
        let probe = probe::tend(Arc::clone(&worker), Arc::clone(pool), self.pace);
        Tended {
            worker,
            model: record.model.clone(),
            pool: Arc::clone(pool),
            _probe: AbortOnDropHandle::new(tokio::spawn(probe)),
        }
    }
}

fn same_address(worker: &Worker, record: &WorkerRecord) -> bool {
    worker.links.is_to(&record.authority)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::args::Dispatch;
    use crate::dispatch::admission::{Ask, Entry, Shed};
    use crate::dispatch::pool::tests::load;
    use crate::table::record::{LeaseRecord, ModelRecord};

    fn fleet() -> Fleet {
        let rules = Rules {
            dispatch: Dispatch::ShortestQueue,
            default_slots: 1,
            max_queued: 9,
            max_held: 9,
            max_waiting_bytes: 9,
            warm_up: Duration::from_secs(10),
            poll_interval: Duration::from_secs(1),
        };
        let pace = Pace {
            interval: Duration::from_secs(60),
            timeout: Duration::from_secs(60),
        };
        Fleet::new(rules, pace, None)
    }

    fn model(name: &str) -> (String, ModelRecord) {
        let record = ModelRecord {
            names: vec![name.to_owned()],
            ..ModelRecord::default()
        };
        (format!("ns/{name}"), record)
    }

    #[tokio::test]
    async fn whoever_waits_for_a_model_that_is_deleted_is_sent_away() {
        let now = shell::clock::now();
        let fleet = fleet();
        fleet.apply(
            &Table {
                models: [model("m")].into(),
                ..Table::default()
            },
            now,
        );
        let pool = Arc::clone(fleet.directory().pool("m").unwrap());
        let Entry::Wait(mut waiting) = pool.enter(Ask::default(), now) else {
            panic!("there is no worker yet");
        };
        fleet.apply(&Table::default(), now);
        assert!(waiting.slot().await.is_none());
        assert!(fleet.directory().pool("m").is_none());
        // One that asked for the model just before.
        let late = pool.enter(Ask::default(), now);
        assert!(matches!(late, Entry::Refused(Shed::Gone)));
        assert_eq!(pool.demand(), Demand::default());
    }

    #[tokio::test]
    async fn a_deployment_made_again_with_the_same_pods_hears_their_reports() {
        let now = shell::clock::now();
        let fleet = fleet();
        let worker = WorkerRecord {
            model: "ns/m".to_owned(),
            name: "w".to_owned(),
            authority: "127.0.0.1:1".parse().unwrap(),
            lease: Some(LeaseRecord {
                renewed: now,
                load: Some(load(1, 4, 7)),
            }),
        };
        let pods_alone = Table {
            workers: [("uid".to_owned(), worker)].into(),
            ..Table::default()
        };
        let both = Table {
            models: [model("m")].into(),
            ..pods_alone.clone()
        };
        let pool_after = |table: &Table| {
            fleet.apply(table, now);
            fleet.directory().pool("m").cloned()
        };
        let first = pool_after(&both).unwrap();
        assert!(pool_after(&pods_alone).is_none());
        let second = pool_after(&both).unwrap();
        assert!(!Arc::ptr_eq(&first, &second));
        let view = second.view(now);
        assert!(view[0].reported.is_some(), "its reports go to the old pool");
    }
}
