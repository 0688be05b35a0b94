//! The Lease of a worker: made by the operator, renewed by the worker.

use crds::LlavaWorker;
use crds::name::LEASE_DURATION_SECONDS;
use serde_json::{Value, json};

/// The fields of the Lease that are the operator's.
#[must_use]
pub fn lease(worker: &LlavaWorker) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": worker.metadata.name,
            "namespace": worker.metadata.namespace,
            "labels": super::labels(worker),
            // It does not hold up the worker's deletion: a draining worker still reports.
            "ownerReferences": [super::owner(worker, false)],
        },
        "spec": {"leaseDurationSeconds": LEASE_DURATION_SECONDS},
    })
}
