//! What a deployment owns beside its workers, one file per kind. All bear the
//! same name and the same labels.

pub mod account;
pub mod binding;
pub mod budget;
pub mod policy;
pub mod role;
pub mod service;

use crds::LlavaDeployment;
use crds::name::{FIELD_MANAGER, WORKER, child_name, label};
use kube::Resource;
use serde_json::{Value, json};

/// Metadata of a child.
fn metadata(deployment: &LlavaDeployment) -> Value {
    let name = deployment.metadata.name.clone().unwrap_or_default();
    json!({
        "name": child_name(&name),
        "namespace": deployment.metadata.namespace,
        "labels": {
            label::NAME: WORKER,
            label::INSTANCE: name,
            label::MANAGED_BY: FIELD_MANAGER,
            label::DEPLOYMENT: name,
        },
        "ownerReferences": [owner(deployment)],
    })
}

/// Labels that select the worker Pods of a deployment.
fn selector(deployment: &LlavaDeployment) -> Value {
    json!({label::NAME: WORKER, label::DEPLOYMENT: deployment.metadata.name})
}

/// The owner reference of what belongs to a deployment.
pub(super) fn owner(deployment: &LlavaDeployment) -> Value {
    json!({
        "apiVersion": LlavaDeployment::api_version(&()),
        "kind": LlavaDeployment::kind(&()),
        "name": deployment.metadata.name,
        "uid": deployment.metadata.uid,
        "controller": true,
        "blockOwnerDeletion": true,
    })
}
