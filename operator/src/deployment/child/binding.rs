//! Gives the Role to the workers' ServiceAccount, the operator's or a user's own.

use crds::LlavaDeployment;
use crds::name::child_name;
use serde_json::{Value, json};

/// The RoleBinding.
#[must_use]
pub fn binding(deployment: &LlavaDeployment, account: &str) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": super::metadata(deployment),
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "Role",
            "name": child_name(deployment.metadata.name.as_deref().unwrap_or_default()),
        },
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": deployment.metadata.namespace}],
    })
}
