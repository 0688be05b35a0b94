//! How many workers the load asks for.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::duration::Duration;

/// The operator's own scaler: it reads the queues from the workers' and the
/// routers' Leases, so that no metrics stack is needed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.minReplicas <= self.maxReplicas").message("minReplicas must not exceed maxReplicas; raise maxReplicas or lower minReplicas"),
    validation = Rule::new("!has(self.idleTimeout) || self.minReplicas == 0").message("idleTimeout has an effect only with minReplicas 0; set minReplicas to 0 or remove idleTimeout"),
)]
pub struct Autoscaling {
    /// The fewest workers; 0 lets the deployment sleep while nobody asks.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 1000))]
    pub min_replicas: i32,
    /// The most workers.
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: i32,
    /// Running and waiting requests that one worker should have.
    #[serde(default = "target_queue_length")]
    #[schemars(range(min = 1, max = 1000))]
    pub target_queue_length: i32,
    /// For how long every reading must be low before workers are taken away.
    #[serde(default = "scale_down_delay")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('24h')").message("scaleDownDelay must be at most 24h"))]
    pub scale_down_delay: Duration,
    /// With minReplicas 0: how long nobody must have asked before the last worker goes. Default: 10m.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s')").message("idleTimeout must be at least 1s"))]
    pub idle_timeout: Option<Duration>,
}

/// What [`Autoscaling::idle_timeout`] is when it is left out.
pub const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(600);

fn one() -> i32 {
    1
}

fn target_queue_length() -> i32 {
    4
}

fn scale_down_delay() -> Duration {
    Duration::from_secs(300)
}
