//! How a change of the worker template reaches the workers.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::duration::Duration;

/// Bounds of a rolling update. They hold at every single step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(self.maxSurge in [dyn(0), dyn('0%')] && self.maxUnavailable in [dyn(0), dyn('0%')])")
        .message("maxSurge and maxUnavailable must not both be zero: no worker could ever be replaced; raise one of them")
)]
pub struct Rollout {
    /// Workers above the wished number during a rollout, as a number or a percentage (rounded up). A surge worker
    /// that finds no free GPU is not waited for: one old worker goes first instead.
    #[serde(default = "max_surge")]
    #[x_kube(validation = Rule::new("type(self) == int ? int(self) >= 0 && int(self) <= 1000 : string(self).matches('^(100|[1-9]?[0-9])%$')").message("maxSurge must be a number from 0 to 1000 or a percentage such as 25%"))]
    pub max_surge: IntOrString,
    /// Workers that may be missing during a rollout, as a number or a percentage (rounded down).
    #[serde(default = "max_unavailable")]
    #[x_kube(validation = Rule::new("type(self) == int ? int(self) >= 0 && int(self) <= 1000 : string(self).matches('^(100|[1-9]?[0-9])%$')").message("maxUnavailable must be a number from 0 to 1000 or a percentage such as 25%"))]
    pub max_unavailable: IntOrString,
    /// How long a rollout may make no progress before the condition Progressing turns False.
    #[serde(default = "progress_deadline")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('24h')").message("progressDeadline must be from 1s to 24h"))]
    pub progress_deadline: Duration,
    /// Holds a rollout where it is; scaling goes on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            max_surge: max_surge(),
            max_unavailable: max_unavailable(),
            progress_deadline: progress_deadline(),
            paused: false,
        }
    }
}

fn max_surge() -> IntOrString {
    IntOrString::Int(1)
}

fn max_unavailable() -> IntOrString {
    IntOrString::Int(0)
}

fn progress_deadline() -> Duration {
    Duration::from_secs(1800)
}
