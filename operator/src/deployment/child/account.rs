//! The identity of a deployment's workers.

use crds::LlavaDeployment;
use serde_json::{Value, json};

/// The ServiceAccount. It mounts no token by itself; the Pods ask for one.
#[must_use]
pub fn account(deployment: &LlavaDeployment) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": super::metadata(deployment),
        "automountServiceAccountToken": false,
    })
}
