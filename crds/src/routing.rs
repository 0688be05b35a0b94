//! How requests find a worker.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::Duration;

/// How the router treats requests for this model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Routing {
    /// How a worker is picked.
    #[serde(default)]
    pub policy: Policy,
    /// Requests that may wait at one worker; more are refused with 429. Default: chosen by the worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub max_queue_length: Option<i32>,
    /// How long a request may wait for its turn before it is refused with 429. Default: chosen by the worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('1h')").message("queueTimeout must be from 1s to 1h"))]
    pub queue_timeout: Option<Duration>,
}

/// How a worker is picked; LLaVA's two dispatch methods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Policy {
    /// The worker with the fewest requests for its speed.
    #[default]
    ShortestQueue,
    /// At random, weighted by speed.
    Lottery,
}
