//! This replica's own Lease: it tells the other replicas that it is there, and
//! the operator what is in flight and what waits, on the beat and at once when
//! the first request is held for a model without workers.

use std::sync::Arc;
use std::time::Duration;

use crds::name;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use protocol::load::RouterReport;
use serde_json::json;

use crate::dispatch::fleet::Fleet;

const MANAGER: &str = name::ROUTER;
const PATIENCE: Duration = Duration::from_secs(4);
/// Reports of held requests follow each other no faster than this.
const PAUSE: Duration = Duration::from_millis(200);

/// Who this replica is, by the downward API.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// The Pod's name, which the Lease shares.
    pub(crate) name: String,
    /// The Pod's namespace.
    pub(crate) namespace: String,
    /// The Pod's UID: the holder, and the owner that takes the Lease with it.
    pub(crate) uid: Option<String>,
}

impl Identity {
    /// From `POD_NAME`, `POD_NAMESPACE` and `POD_UID`; `None` outside a Pod.
    pub(crate) fn from_env() -> Option<Self> {
        Some(Self {
            name: std::env::var(name::env::POD_NAME).ok()?,
            namespace: std::env::var(name::env::POD_NAMESPACE).ok()?,
            uid: std::env::var(name::env::POD_UID).ok(),
        })
    }
}

/// Renews for ever.
pub(crate) async fn renew(client: Client, identity: Identity, fleet: Arc<Fleet>) {
    let api: Api<Lease> = Api::namespaced(client, &identity.namespace);
    let params = PatchParams::apply(MANAGER).force();
    let every = Duration::from_secs(name::LEASE_RENEW_SECONDS);
    loop {
        let lease = Patch::Apply(lease(&identity, &fleet, Timestamp::now()));
        let renewing = api.patch(&identity.name, &params, &lease);
        match tokio::time::timeout(PATIENCE, renewing).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, lease = identity.name, "the router's Lease was not renewed");
            }
            Err(_) => tracing::warn!(
                lease = identity.name,
                "the router's Lease was not renewed in time"
            ),
        }
        tokio::time::sleep(PAUSE).await;
        let _ = tokio::time::timeout(every.saturating_sub(PAUSE), fleet.held.notified()).await;
    }
}

fn lease(identity: &Identity, fleet: &Fleet, now: Timestamp) -> serde_json::Value {
    let report = RouterReport {
        captured_at_ms: u64::try_from(now.as_millisecond()).unwrap_or(0),
        deployments: fleet.demand(),
    };
    let owner = identity
        .uid
        .as_ref()
        .map(|uid| json!([{"apiVersion": "v1", "kind": "Pod", "name": identity.name, "uid": uid}]));
    let renewed = now.round(jiff::Unit::Microsecond).unwrap_or(now);
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": identity.name,
            "namespace": identity.namespace,
            "labels": {(name::label::NAME): name::ROUTER},
            "annotations": {(name::annotation::ROUTER_LOAD): json!(report).to_string()},
            "ownerReferences": owner.unwrap_or_else(|| json!([])),
        },
        "spec": {
            "holderIdentity": identity.uid.as_ref().unwrap_or(&identity.name),
            "leaseDurationSeconds": name::LEASE_DURATION_SECONDS,
            "renewTime": format!("{renewed:.6}"),
        },
    })
}
