//! What the operator sees: one watch per kind, kept in stores, and the
//! reconciliations that each event asks for.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crds::name::{FIELD_MANAGER, ROUTER, WORKER, label};
use crds::{LlavaDeployment, LlavaWorker};
use futures::StreamExt;
use futures::channel::mpsc;
use futures::future::BoxFuture;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::core::DeserializeGuard;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::births::Births;
use crate::demand::Demands;
use crate::drive::Ask;
use crate::expectations::Expectations;
use crate::heartbeat::{Change, Heartbeats};
use crate::key::Key;
use crate::names::Names;
use crate::queue::Queue;
use crate::worker::warnings::Warnings;

/// A LlavaDeployment that may not be readable.
pub type Deployment = DeserializeGuard<LlavaDeployment>;
/// A LlavaWorker that may not be readable.
pub type Worker = DeserializeGuard<LlavaWorker>;

/// Which namespaces are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All of them.
    Cluster,
    /// One.
    Namespace(String),
}

/// What is observed, shared by both controllers.
#[derive(Debug)]
pub struct World {
    /// LlavaDeployments.
    pub deployments: Store<Deployment>,
    /// LlavaWorkers.
    pub workers: Store<Worker>,
    /// Worker Pods.
    pub pods: Store<Pod>,
    /// Worker Leases.
    pub leases: Store<Lease>,
    /// Headless Services of ours.
    pub services: Store<Service>,
    /// NetworkPolicies of ours.
    pub policies: Store<NetworkPolicy>,
    /// PodDisruptionBudgets of ours.
    pub budgets: Store<PodDisruptionBudget>,
    /// ServiceAccounts of ours.
    pub accounts: Store<ServiceAccount>,
    /// Roles of ours.
    pub roles: Store<Role>,
    /// RoleBindings of ours.
    pub bindings: Store<RoleBinding>,
    worker_names: Mutex<Names>,
    pod_names: Mutex<Names>,
    heartbeats: Mutex<Heartbeats>,
    demands: Mutex<Demands>,
    births: Mutex<Births>,
    /// Since when each deployment's spec is as it is.
    since: Mutex<HashMap<Key, Instant>>,
    /// What nodes warn of.
    pub warnings: Warnings,
    /// Writes of the deployment controller.
    pub worker_writes: Expectations,
    /// Writes of the worker controller.
    pub pod_writes: Expectations,
    deployment_queue: Queue,
    worker_queue: Queue,
}

/// How long the events of an object gather before one reconciliation answers them.
const OWN: Duration = Duration::from_millis(20);
/// The same for a deployment's workers and other children: they come in flocks.
const CHILDREN: Duration = Duration::from_millis(100);

/// What an event says of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Saw {
    /// It was not known before.
    Born,
    /// It changed, its spec or its end among it.
    Changed,
    /// It changed, but was told nothing new.
    Told,
    /// It is gone.
    Gone,
}

/// The reconciliations asked for.
#[derive(Debug)]
pub struct Requests {
    /// For the deployment controller.
    pub deployments: mpsc::UnboundedReceiver<Ask>,
    /// For the worker controller.
    pub workers: mpsc::UnboundedReceiver<Ask>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    /// Watches everything. Returns what is seen, what is asked for, and the
    /// watches themselves, which have to be driven and never end.
    #[must_use]
    pub fn watch(
        client: &Client,
        scope: &Scope,
        router_namespace: &str,
    ) -> (Arc<Self>, Requests, Vec<BoxFuture<'static, ()>>) {
        let (deployments, deployments_writer) = reflector::store();
        let (workers, workers_writer) = reflector::store();
        let (pods, pods_writer) = reflector::store();
        let (leases, leases_writer) = reflector::store();
        let (services, services_writer) = reflector::store();
        let (policies, policies_writer) = reflector::store();
        let (budgets, budgets_writer) = reflector::store();
        let (accounts, accounts_writer) = reflector::store();
        let (roles, roles_writer) = reflector::store();
        let (bindings, bindings_writer) = reflector::store();
        let (deployment_queue, deployment_requests) = Queue::new();
        let (worker_queue, worker_requests) = Queue::new();
        let world = Arc::new(Self {
            deployments,
            workers,
            pods,
            leases,
            services,
            policies,
            budgets,
            accounts,
            roles,
            bindings,
            worker_names: Mutex::default(),
            pod_names: Mutex::default(),
            heartbeats: Mutex::default(),
            demands: Mutex::default(),
            births: Mutex::default(),
            since: Mutex::default(),
            warnings: Warnings::default(),
            worker_writes: Expectations::default(),
            pod_writes: Expectations::default(),
            deployment_queue,
            worker_queue,
        });
        let managed = format!("{}={FIELD_MANAGER}", label::MANAGED_BY);
        let of_workers = format!("{}={WORKER}", label::NAME);
        let of_routers = format!("{}={ROUTER}", label::NAME);
        let routers = Scope::Namespace(router_namespace.to_owned());
        let at = |scope: &Scope, labels: &str| (client.clone(), scope.clone(), labels.to_owned());
        let watches: Vec<BoxFuture<'static, ()>> = vec![
            Box::pin(follow(
                at(scope, ""),
                Some(deployments_writer),
                world.clone(),
                Self::saw_deployment,
            )),
            Box::pin(follow(
                at(scope, ""),
                Some(workers_writer),
                world.clone(),
                Self::saw_worker,
            )),
            Box::pin(follow(
                at(scope, &of_workers),
                Some(pods_writer),
                world.clone(),
                Self::saw_pod,
            )),
            Box::pin(follow(
                at(scope, &of_workers),
                Some(leases_writer),
                world.clone(),
                Self::saw_lease,
            )),
            Box::pin(follow(
                at(&routers, &of_routers),
                None,
                world.clone(),
                Self::saw_router,
            )),
            Box::pin(follow(
                at(scope, &managed),
                Some(services_writer),
                world.clone(),
                Self::saw_child::<Service>,
            )),
            Box::pin(follow(
                at(scope, &managed),
                Some(policies_writer),
                world.clone(),
                Self::saw_child::<NetworkPolicy>,
            )),
            Box::pin(follow(
                at(scope, &managed),
                Some(budgets_writer),
                world.clone(),
                Self::saw_child::<PodDisruptionBudget>,
            )),
            Box::pin(follow(
                at(scope, &managed),
                Some(accounts_writer),
                world.clone(),
                Self::saw_child::<ServiceAccount>,
            )),
            Box::pin(follow(
                at(scope, &managed),
                Some(roles_writer),
                world.clone(),
                Self::saw_child::<Role>,
            )),
            Box::pin(follow(
                at(scope, &managed),
                Some(bindings_writer),
                world.clone(),
                Self::saw_child::<RoleBinding>,
            )),
            Box::pin(sweep(world.clone())),
        ];
        let requests = Requests {
            deployments: deployment_requests,
            workers: worker_requests,
        };
        (world, requests, watches)
    }

    /// Returns once every store holds a first complete list.
    pub async fn synced(&self) {
        let _ = futures::join!(
            self.deployments.wait_until_ready(),
            self.workers.wait_until_ready(),
            self.pods.wait_until_ready(),
            self.leases.wait_until_ready(),
            self.services.wait_until_ready(),
            self.policies.wait_until_ready(),
            self.budgets.wait_until_ready(),
            self.accounts.wait_until_ready(),
            self.roles.wait_until_ready(),
            self.bindings.wait_until_ready(),
        );
    }

    /// The workers' heartbeats.
    pub fn heartbeats(&self) -> MutexGuard<'_, Heartbeats> {
        lock(&self.heartbeats)
    }

    /// The routers' figures.
    pub fn demands(&self) -> MutexGuard<'_, Demands> {
        lock(&self.demands)
    }

    /// The Pods that workers have had.
    pub fn births(&self) -> MutexGuard<'_, Births> {
        lock(&self.births)
    }

    /// Since when there is something to do for a deployment.
    pub fn since(&self, deployment: &Key) -> Instant {
        let since = lock(&self.since).get(deployment).copied();
        since.unwrap_or_else(shell::clock::now)
    }

    /// Reconciliations of LlavaDeployments.
    pub fn deployment_queue(&self) -> &Queue {
        &self.deployment_queue
    }

    /// Reconciliations of LlavaWorkers.
    pub fn worker_queue(&self) -> &Queue {
        &self.worker_queue
    }

    /// The workers that name this deployment.
    pub fn workers_of(&self, deployment: &Key) -> Vec<Arc<Worker>> {
        let ours = |worker: &Worker| parent(worker).is_some_and(|name| name == deployment.name);
        let names = lock(&self.worker_names).of(deployment);
        let reference = |key: &Key| ObjectRef::new(&key.name).within(&key.namespace);
        let found = names.iter().map(reference);
        found
            .filter_map(|reference| self.workers.get(&reference))
            .filter(|worker| ours(worker))
            .collect()
    }

    /// Names of Pods that begin like this deployment's, whoever they belong to.
    pub fn pod_names_of(&self, deployment: &Key) -> Vec<String> {
        let names = lock(&self.pod_names).of(deployment);
        names.into_iter().map(|key| key.name).collect()
    }

    fn saw_deployment(&self, deployment: &Deployment, saw: Saw) {
        let key = Key::of(deployment);
        let mut since = lock(&self.since);
        match saw {
            Saw::Gone => {
                since.remove(&key);
                self.worker_writes.forget(&key);
            }
            Saw::Born | Saw::Changed => {
                since.insert(key.clone(), shell::clock::now());
            }
            Saw::Told => {}
        }
        drop(since);
        self.deployment_queue.push(&key, OWN, saw == Saw::Told);
    }

    fn saw_worker(&self, worker: &Worker, saw: Saw) {
        let key = Key::of(worker);
        let gone = saw == Saw::Gone;
        if let Some(name) = parent(worker) {
            let parent = Key::new(&key.namespace, name);
            let uid = worker.uid().unwrap_or_default();
            let ending = gone || worker.meta().deletion_timestamp.is_some();
            self.worker_writes.saw(&parent, &uid, ending);
            self.deployment_queue
                .push(&parent, CHILDREN, saw == Saw::Born);
        }
        if gone {
            self.pod_writes.forget(&key);
            self.births().forget(&worker.uid().unwrap_or_default());
            lock(&self.worker_names).delete(&key);
        } else {
            lock(&self.worker_names).apply(key.clone());
        }
        self.worker_queue.push(&key, OWN, saw == Saw::Told);
    }

    fn saw_pod(&self, pod: &Pod, saw: Saw) {
        let key = Key::of(pod);
        let (gone, echo) = (saw == Saw::Gone, saw == Saw::Born);
        if gone {
            lock(&self.pod_names).delete(&key);
        } else {
            lock(&self.pod_names).apply(key.clone());
        }
        let ending = gone || pod.metadata.deletion_timestamp.is_some();
        self.pod_writes
            .saw(&key, &pod.uid().unwrap_or_default(), ending);
        if let Some(deployment) = pod.labels().get(label::DEPLOYMENT) {
            self.deployment_queue
                .push(&Key::new(&key.namespace, deployment), CHILDREN, echo);
        }
        self.worker_queue.push(&key, OWN, echo);
    }

    fn saw_lease(&self, lease: &Lease, saw: Saw) {
        let key = Key::of(lease);
        let changed = {
            let mut beats = self.heartbeats();
            if saw == Saw::Gone {
                beats.delete(&key);
                true
            } else {
                beats.apply(lease, shell::clock::now()) == Change::Some
            }
        };
        if changed {
            self.worker_queue.push(&key, OWN, false);
            if let Some(deployment) = lease.labels().get(label::DEPLOYMENT) {
                self.deployment_queue
                    .push(&Key::new(&key.namespace, deployment), CHILDREN, false);
            }
        }
    }

    fn saw_router(&self, lease: &Lease, saw: Saw) {
        let changed = {
            let mut demands = self.demands();
            if saw == Saw::Gone {
                demands.delete(&Key::of(lease))
            } else {
                demands.apply(lease, shell::clock::now())
            }
        };
        changed
            .iter()
            .for_each(|deployment| self.deployment_queue.push(deployment, OWN, false));
    }

    fn saw_child<K: Resource<DynamicType = ()>>(&self, child: &K, saw: Saw) {
        if let Some(deployment) = child.labels().get(label::DEPLOYMENT) {
            let namespace = child.namespace().unwrap_or_default();
            self.deployment_queue.push(
                &Key::new(namespace, deployment),
                CHILDREN,
                saw == Saw::Born,
            );
        }
    }

    /// After a new list: what vanished meanwhile left no event, so everybody looks again.
    fn listed(&self) {
        // Locked before the look at the store: a birth that is noted later is kept whatever the look says.
        let mut births = self.births();
        let workers = self.workers.state();
        let uids: HashSet<String> = workers.iter().filter_map(|worker| worker.uid()).collect();
        births.retain(|uid| uids.contains(uid));
        drop(births);
        lock(&self.worker_names).reset(workers.iter().map(|worker| Key::of(&**worker)));
        let pods = self.pods.state();
        lock(&self.pod_names).reset(pods.iter().map(|pod| Key::of(&**pod)));
        for deployment in self.deployments.state() {
            self.deployment_queue
                .push(&Key::of(&*deployment), OWN, false);
        }
        for worker in workers {
            self.worker_queue.push(&Key::of(&*worker), OWN, false);
        }
        let leases = &self.leases;
        self.heartbeats().retain(|key| {
            leases
                .get(&ObjectRef::new(&key.name).within(&key.namespace))
                .is_some()
        });
    }
}

/// The deployment that a worker names; in its labels, if the rest of it cannot be read.
fn parent(worker: &Worker) -> Option<&str> {
    match &worker.0 {
        Ok(worker) => Some(&worker.spec.deployment),
        Err(invalid) => {
            let labels = invalid.metadata.labels.as_ref()?;
            labels.get(label::DEPLOYMENT).map(String::as_str)
        }
    }
}

/// Follows one kind for ever.
async fn follow<K>(
    (client, scope, labels): (Client, Scope, String),
    mut writer: Option<reflector::store::Writer<K>>,
    world: Arc<World>,
    saw: fn(&World, &K, Saw),
) where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + 'static,
{
    let api: Api<K> = match scope {
        Scope::Cluster => Api::all(client),
        Scope::Namespace(namespace) => Api::namespaced(client, &namespace),
    };
    let mut config = watcher::Config::default().streaming_lists();
    if !labels.is_empty() {
        config = config.labels(&labels);
    }
    let mut events = watch(api, config).default_backoff().boxed();
    let known = writer.as_ref().map(reflector::store::Writer::as_reader);
    let mut lists = 0_u32;
    while let Some(event) = events.next().await {
        let mut event = match event {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!(kind = %K::kind(&()), %error, "watch interrupted; it starts again by itself");
                continue;
            }
        };
        if let Event::Apply(object) | Event::InitApply(object) = &mut event {
            object.managed_fields_mut().clear();
        }
        let what = sight(&event, known.as_ref());
        if let Some(writer) = &mut writer {
            writer.apply_watcher_event(&event);
        }
        match &event {
            Event::Apply(object) | Event::InitApply(object) | Event::Delete(object) => {
                saw(&world, object, what);
            }
            Event::InitDone => {
                lists += 1;
                if lists > 1 {
                    world.listed();
                }
            }
            Event::Init => {}
        }
    }
}

/// What an event says, beside what was known before it.
fn sight<K>(event: &Event<K>, known: Option<&Store<K>>) -> Saw
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let (Event::Apply(object) | Event::InitApply(object)) = event else {
        return Saw::Gone;
    };
    let before = known.and_then(|known| known.get(&ObjectRef::from_obj(object)));
    let told = |object: &K| {
        let metadata = object.meta();
        (metadata.generation, metadata.deletion_timestamp.is_some())
    };
    match before {
        None => Saw::Born,
        Some(before) if told(&before) == told(object) => Saw::Told,
        Some(_) => Saw::Changed,
    }
}

/// Looks for Leases that are no longer renewed.
async fn sweep(world: Arc<World>) {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    loop {
        ticks.tick().await;
        let turned = world.heartbeats().sweep(shell::clock::now());
        for key in turned {
            world.worker_queue.push(&key, OWN, false);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_tells_a_birth_from_a_change_and_from_a_new_status() {
        let pod = |generation: i64, phase: &str| -> Pod {
            let metadata = json!({"namespace": "ns", "name": "a", "generation": generation});
            let status = json!({"phase": phase});
            serde_json::from_value(json!({"metadata": metadata, "status": status})).unwrap()
        };
        let (known, mut writer) = reflector::store();
        let mut saw = |event: Event<Pod>| {
            let saw = sight(&event, Some(&known));
            writer.apply_watcher_event(&event);
            saw
        };
        assert_eq!(saw(Event::Apply(pod(1, "Pending"))), Saw::Born);
        assert_eq!(saw(Event::Apply(pod(1, "Running"))), Saw::Told);
        assert_eq!(saw(Event::Apply(pod(2, "Running"))), Saw::Changed);
        assert_eq!(saw(Event::Delete(pod(2, "Running"))), Saw::Gone);
        assert_eq!(saw(Event::Apply(pod(1, "Pending"))), Saw::Born);
    }
}
