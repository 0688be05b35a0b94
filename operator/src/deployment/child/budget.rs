//! Keeps node drains from taking more workers than a rollout would.

use crds::LlavaDeployment;
use serde_json::{Value, json};

/// The PodDisruptionBudget. It counts in whole Pods: percentages need an owner
/// with a scale subresource. A single worker may be evicted, or no node could
/// ever be drained.
#[must_use]
pub fn budget(deployment: &LlavaDeployment, replicas: usize, unavailable: usize) -> Value {
    json!({
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": super::metadata(deployment),
        "spec": {
            "minAvailable": replicas.saturating_sub(unavailable.max(1)),
            "selector": {"matchLabels": super::selector(deployment)},
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    })
}
