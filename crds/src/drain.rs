//! How a worker leaves.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::duration::Duration;

/// How a worker that must go finishes the answers it has begun.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Drain {
    /// How long running answers may take; what is not finished then ends with an error event. The Pod's grace
    /// period is this plus a margin, which is why it is bounded.
    #[serde(default = "timeout")]
    #[x_kube(validation = Rule::new("duration(self) <= duration('1h')").message("drain.timeout must be at most 1h: the Pod's grace period follows it"))]
    pub timeout: Duration,
}

/// What the Pod's grace period has beyond the drain timeout, seconds: the last
/// error events must be written and the process must end.
pub const GRACE_MARGIN_SECONDS: u64 = 10;

impl Drain {
    /// The Pod's grace period, seconds.
    #[must_use]
    pub fn grace_period_seconds(&self) -> i64 {
        let seconds = self.timeout.seconds_ceil() + GRACE_MARGIN_SECONDS;
        i64::try_from(seconds).unwrap_or(i64::MAX)
    }
}

impl Default for Drain {
    fn default() -> Self {
        Self { timeout: timeout() }
    }
}

fn timeout() -> Duration {
    Duration::from_secs(60)
}
