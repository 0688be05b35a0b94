//! Closes a deployment's workers to everybody but whom the operator was told of.

use crds::LlavaDeployment;
use k8s_openapi::api::networking::v1::NetworkPolicySpec;
use serde_json::{Value, json};

/// The NetworkPolicy with these rules, over the Pods of this deployment.
#[must_use]
pub fn policy(deployment: &LlavaDeployment, rules: &NetworkPolicySpec) -> Value {
    let mut spec = json!(rules);
    spec["podSelector"] = json!({"matchLabels": super::selector(deployment)});
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": super::metadata(deployment),
        "spec": spec,
    })
}
