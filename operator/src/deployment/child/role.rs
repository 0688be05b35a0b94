//! What a deployment's workers may do: renew their Leases, by name. Which of
//! these is a worker's own is told by the admission policy of the chart, since a
//! Role cannot see which Pod a token belongs to.

use crds::LlavaDeployment;
use serde_json::{Value, json};

/// The Role over the Leases of these names. An empty list of names would mean
/// every Lease, so then there is no rule at all.
#[must_use]
pub fn role(deployment: &LlavaDeployment, leases: &[String]) -> Value {
    let rule = json!({
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "resourceNames": leases,
        "verbs": ["get", "patch", "update"],
    });
    let rules = if leases.is_empty() {
        vec![]
    } else {
        vec![rule]
    };
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": super::metadata(deployment),
        "rules": rules,
    })
}
