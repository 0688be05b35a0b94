//! The watches that feed the index, and what is read of each object. While the
//! API server is away, what was known last stands.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use crds::LlavaDeployment;
use crds::name;
use crds::routing::Policy;
use futures::{Stream, StreamExt as _};
use http::uri::Authority;
use k8s_openapi::api::coordination::v1::Lease as KubeLease;
use k8s_openapi::api::core::v1::Pod as KubePod;
use kube::core::DeserializeGuard;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource, ResourceExt as _};
use protocol::port;
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use crate::args::Dispatch;
use crate::table::index::{Change, Deployment, Index, Key, Lease, Pod, Urgency};
use crate::table::record::{Discovery, Table};
use crate::table::staged::Event;

/// How often the table is made anew without an event: replicas of the router
/// leave it by falling silent.
const TICK: Duration = Duration::from_secs(2);
/// Changes that can wait are gathered for this long: of a thousand workers, two hundred
/// renew their Leases each second.
const GATHER: Duration = Duration::from_millis(100);

/// Where to look.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    /// Only here, or everywhere.
    pub(crate) namespace: Option<String>,
    /// Where this router's own replicas are.
    pub(crate) own_namespace: String,
}

/// Watches for ever and publishes each new table.
pub(crate) async fn watch(
    client: Client,
    scope: Scope,
    publish: watch::Sender<Table>,
    discovery: Arc<Discovery>,
) {
    let workers = format!("{}={}", name::label::NAME, name::WORKER);
    let both = format!(
        "{} in ({},{})",
        name::label::NAME,
        name::WORKER,
        name::ROUTER
    );
    let deployments = events::<DeserializeGuard<LlavaDeployment>>(&client, &scope, "")
        .filter_map(async |event| read(event, deployment).map(Change::Deployment));
    let pods = events::<KubePod>(&client, &scope, &workers)
        .filter_map(async |event| read(event, |object| Some(pod(object))).map(Change::Pod));
    let own = scope.own_namespace.clone();
    let leases = events::<KubeLease>(&client, &scope, &both).filter_map(async |event| {
        read(event, |object| Some(lease(object, &own))).map(Change::Lease)
    });
    let changes = futures::stream::select_all([deployments.boxed(), pods.boxed(), leases.boxed()]);
    follow(changes, publish, &discovery).await;
}

/// Publishes a new table when the changes ask for one. As long as more of them are there,
/// these come first.
async fn follow(
    mut changes: impl Stream<Item = Change> + Unpin,
    publish: watch::Sender<Table>,
    discovery: &Discovery,
) {
    let mut index = Index::default();
    let mut due = shell::clock::now();
    loop {
        tokio::select! {
            biased;
            change = changes.next() => {
                let Some(change) = change else {
                    return;
                };
                let now = shell::clock::now();
                discovery.event(change.ends_list(), now);
                due = due.min(match index.take(change) {
                    Urgency::None => due,
                    Urgency::Soon => now + GATHER,
                    Urgency::Now => now,
                });
            }
            () = tokio::time::sleep_until(due.into()) => {
                let now = shell::clock::now();
                let table = index.table(now);
                publish.send_if_modified(|old| {
                    let changed = *old != table;
                    *old = table;
                    changed
                });
                due = now + TICK;
            }
        }
    }
}

fn events<K>(
    client: &Client,
    scope: &Scope,
    labels: &str,
) -> impl Stream<Item = watcher::Event<K>> + use<K>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + 'static,
{
    let api: Api<K> = match &scope.namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    watcher(api, watcher::Config::default().labels(labels))
        .default_backoff()
        .filter_map(async |event| match event {
            Ok(event) => Some(event),
            Err(error) => {
                tracing::warn!(kind = %K::kind(&()), %error, "watch failed; the last known state stands");
                None
            }
        })
}

/// An event with what is needed of its object. Of an object that does not read, what
/// was read of it before stands until it is deleted.
fn read<K: Resource, T>(
    event: watcher::Event<K>,
    read: impl Fn(&K) -> Option<T>,
) -> Option<Event<T>> {
    Some(match event {
        watcher::Event::Init => Event::Init,
        watcher::Event::InitDone => Event::InitDone,
        watcher::Event::InitApply(object) => match read(&object) {
            Some(what) => Event::InitApply(key(&object), what),
            None => Event::InitKeep(key(&object), uid(&object)),
        },
        watcher::Event::Apply(object) => Event::Apply(key(&object), read(&object)?),
        watcher::Event::Delete(object) => Event::Delete(key(&object), uid(&object)),
    })
}

fn key(object: &impl Resource) -> Key {
    Key {
        namespace: object.meta().namespace.clone().unwrap_or_default(),
        name: object.meta().name.clone().unwrap_or_default(),
    }
}

fn uid(object: &impl Resource) -> String {
    object.meta().uid.clone().unwrap_or_default()
}

fn deployment(guarded: &DeserializeGuard<LlavaDeployment>) -> Option<Deployment> {
    let object = match &guarded.0 {
        Ok(object) => object,
        Err(error) => {
            tracing::warn!(object = %key(guarded), %error, "a LlavaDeployment does not read; it stands as it was last read, if it was");
            return None;
        }
    };
    let model = &object.spec.model;
    let name = model.name.clone().unwrap_or_else(|| object.name_any());
    Some(Deployment {
        uid: uid(object),
        names: std::iter::once(name)
            .chain(model.aliases.iter().cloned())
            .collect(),
        created: object
            .meta()
            .creation_timestamp
            .as_ref()
            .map_or(0, |time| time.0.as_second()),
        dispatch: Some(match object.spec.routing.policy {
            Policy::ShortestQueue => Dispatch::ShortestQueue,
            Policy::Lottery => Dispatch::Lottery,
        }),
    })
}

fn pod(object: &KubePod) -> Pod {
    let status = object.status.as_ref();
    let ready = status
        .and_then(|status| status.conditions.as_ref())
        .is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
    let address = status.and_then(|status| status.pod_ip.as_ref());
    Pod {
        uid: uid(object),
        deployment: object
            .labels()
            .get(name::label::DEPLOYMENT)
            .cloned()
            .unwrap_or_default(),
        routable: ready && object.meta().deletion_timestamp.is_none(),
        authority: address.and_then(|address| authority(address, api_port(object))),
    }
}

fn authority(address: &str, port: u16) -> Option<Authority> {
    let text = if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    };
    Authority::try_from(text).ok()
}

fn api_port(object: &KubePod) -> u16 {
    let ports = object.spec.iter().flat_map(|spec| {
        let container = spec
            .containers
            .iter()
            .find(|c| c.name == name::WORKER_CONTAINER);
        container.into_iter().flat_map(|c| c.ports.iter().flatten())
    });
    ports
        .filter(|p| p.name.as_deref() == Some(port::API_NAME))
        .find_map(|p| u16::try_from(p.container_port).ok())
        .unwrap_or(port::API)
}

fn lease(object: &KubeLease, own_namespace: &str) -> Lease {
    let is_router = object.labels().get(name::label::NAME).map(String::as_str)
        == Some(name::ROUTER)
        && object.meta().namespace.as_deref() == Some(own_namespace);
    let spec = object.spec.as_ref();
    let load = object.annotations().get(name::annotation::LOAD);
    Lease {
        uid: uid(object),
        holder: spec.and_then(|spec| spec.holder_identity.clone()),
        renew_time: spec
            .and_then(|spec| spec.renew_time.as_ref())
            .map_or_else(String::new, |time| time.0.to_string()),
        seen: shell::clock::now(),
        load: load.and_then(|text| serde_json::from_str(text).ok()),
        is_router,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::table::record::WorkerRecord;

    fn a_pod(patch: serde_json::Value) -> Pod {
        let mut object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "w", "namespace": "n", "uid": "u", "labels": {"llava.dev/deployment": "d"}},
            "spec": {"containers": [{"name": "worker", "ports": [{"name": "http", "containerPort": 8123}]}]},
            "status": {"podIP": "10.1.2.3", "conditions": [{"type": "Ready", "status": "True"}]}
        });
        merge(&mut object, patch);
        pod(&serde_json::from_value(object).unwrap())
    }

    fn merge(into: &mut serde_json::Value, patch: serde_json::Value) {
        match (into, patch) {
            (serde_json::Value::Object(into), serde_json::Value::Object(patch)) => {
                for (key, value) in patch {
                    merge(into.entry(key).or_insert(serde_json::Value::Null), value);
                }
            }
            (into, patch) => *into = patch,
        }
    }

    #[test]
    fn a_pod_is_routable_when_ready_and_not_terminating() {
        let ready = a_pod(json!({}));
        assert!(ready.routable);
        assert_eq!(ready.authority.unwrap().as_str(), "10.1.2.3:8123");
        assert!(
            !a_pod(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})).routable
        );
        assert!(
            !a_pod(json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}))
                .routable
        );
        assert_eq!(
            a_pod(json!({"status": {"podIP": "fd00::1"}}))
                .authority
                .unwrap()
                .as_str(),
            "[fd00::1]:8123"
        );
    }

    #[tokio::test]
    async fn renewals_make_a_table_now_and_then_and_the_last_of_them_is_in_it() {
        const WORKERS: usize = 10;
        let (tell, told) = futures::channel::mpsc::unbounded();
        let (publish, mut table) = watch::channel(Table::default());
        let key = |number: usize| Key {
            namespace: "n".to_owned(),
            name: format!("w{number}"),
        };
        let lease = |number: usize, turn: usize| Lease {
            uid: format!("l{number}"),
            holder: Some(format!("p{number}")),
            renew_time: turn.to_string(),
            seen: shell::clock::now(),
            load: None,
            is_router: false,
        };
        let telling = async {
            for number in 0..WORKERS {
                let mut pod = a_pod(json!({}));
                pod.uid = format!("p{number}");
                let change = Change::Pod(Event::Apply(key(number), pod));
                tell.unbounded_send(change).unwrap();
            }
            table
                .wait_for(|t| t.workers.len() == WORKERS)
                .await
                .unwrap();
            let start = shell::clock::now();
            let mut tables = 0;
            let mut turn = 0;
            let mut last = start;
            while start.elapsed() < GATHER * 3 {
                turn += 1;
                let lease = lease(turn % WORKERS, turn);
                last = lease.seen;
                let change = Change::Lease(Event::Apply(key(turn % WORKERS), lease));
                tell.unbounded_send(change).unwrap();
                tokio::task::yield_now().await;
                tables += u32::from(table.has_changed().unwrap());
                table.mark_unchanged();
            }
            assert!(tables * GATHER <= start.elapsed(), "{tables} tables");
            let of_last = |worker: &WorkerRecord| {
                worker
                    .lease
                    .as_ref()
                    .is_some_and(|lease| lease.renewed == last)
            };
            let has_last = |table: &Table| table.workers.values().any(of_last);
            table.wait_for(has_last).await.unwrap();
        };
        let discovery = Discovery::new(shell::clock::now());
        tokio::select! {
            () = follow(told, publish, &discovery) => unreachable!("there may be more"),
            () = telling => {}
        }
    }

    fn object(spec: &serde_json::Value) -> DeserializeGuard<LlavaDeployment> {
        let object = json!({
            "apiVersion": "llava.dev/v1alpha1", "kind": "LlavaDeployment",
            "metadata": {
                "name": "demo", "namespace": "n", "uid": "u",
                "creationTimestamp": "1970-01-01T00:01:00Z"
            },
            "spec": spec
        });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_deployment_gives_its_model_name_and_aliases() {
        let read = |spec: serde_json::Value| deployment(&object(&spec));
        let source = json!({"hostPath": {"path": "/m"}});
        let plain = read(json!({"model": {"source": source}})).unwrap();
        assert_eq!((plain.names, plain.created), (vec!["demo".to_owned()], 60));
        let named = read(json!({
            "model": {"name": "llava", "aliases": ["l"], "source": source},
            "routing": {"policy": "Lottery"}
        }));
        let named = named.unwrap();
        assert_eq!(named.names, ["llava", "l"]);
        assert_eq!(named.dispatch, Some(Dispatch::Lottery));
        assert_eq!(read(json!({"model": 7})), None);
    }

    #[test]
    fn a_deployment_that_does_not_read_stands_as_it_was_until_it_is_deleted() {
        use watcher::Event::{Apply, Delete, Init, InitApply, InitDone};
        let models_after = |events: Vec<watcher::Event<_>>| {
            let mut index = Index::default();
            for event in events
                .into_iter()
                .filter_map(|event| read(event, deployment))
            {
                index.take(Change::Deployment(event));
            }
            index.table(shell::clock::now()).models.len()
        };
        let good = || object(&json!({"model": {"source": {"hostPath": {"path": "/m"}}}}));
        let bad = || object(&json!({"model": 7}));
        assert_eq!(models_after(vec![Apply(good()), Apply(bad())]), 1);
        let relist = vec![Apply(good()), Init, InitApply(bad()), InitDone];
        assert_eq!(models_after(relist), 1);
        let deleted = vec![Apply(good()), Apply(bad()), Delete(bad())];
        assert_eq!(models_after(deleted), 0);
    }
}
