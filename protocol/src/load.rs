//! What a worker says about its queue and a router about its own: the figures
//! that dispatch and scaling are decided on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The annotation of a worker's Lease that holds its [`LoadReport`].
pub const LEASE_ANNOTATION: &str = "llava.dev/load";

/// Where a worker stands in its life, as it says itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// The checkpoint is being copied to this node.
    Fetching,
    /// Weights are being read into memory.
    #[default]
    Loading,
    /// The first tokens are being produced to prove that the model works.
    WarmingUp,
    /// Requests are answered.
    Serving,
    /// Running requests finish, new ones are refused.
    Draining,
}

/// A worker's load at one instant. Travels in the header
/// [`LOAD`](crate::header::LOAD), from `GET /v1/load`, and in the annotation of
/// the worker's Lease.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadReport {
    /// Where the worker stands in its life.
    pub phase: Phase,
    /// Sequences that hold a slot.
    pub running: u32,
    /// Requests that wait for a slot.
    pub waiting: u32,
    /// Sequences that can run at once.
    pub slots: u32,
    /// Share of the KV memory in use, 0 to 1.
    #[serde(default)]
    pub kv_used: f32,
    /// When the figures were taken, Unix milliseconds by the worker's clock.
    pub captured_at_ms: u64,
    /// Seconds from process start to the first token, once known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_seconds: Option<f32>,
}

impl LoadReport {
    /// Running and waiting requests: what dispatch calls the queue length.
    #[must_use]
    pub fn queue_length(&self) -> u32 {
        self.running.saturating_add(self.waiting)
    }

    /// Whether new requests are refused.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.phase == Phase::Draining
    }
}

/// What one router replica has in its hands for one LlavaDeployment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Demand {
    /// Requests sent to a worker and not finished.
    pub in_flight: u32,
    /// Requests held in the router because no worker may take them yet.
    pub waiting: u32,
}

/// A router replica's own figures, in the annotation of its Lease.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouterReport {
    /// When the figures were taken, Unix milliseconds by the router's clock.
    pub captured_at_ms: u64,
    /// By `namespace/name` of the LlavaDeployment; those at rest are left out.
    pub deployments: BTreeMap<String, Demand>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_compact_json_that_reads_back() {
        let report = LoadReport {
            running: 3,
            waiting: 2,
            slots: 8,
            ..LoadReport::default()
        };
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(
            text,
            r#"{"phase":"loading","running":3,"waiting":2,"slots":8,"kvUsed":0.0,"capturedAtMs":0}"#
        );
        assert_eq!(serde_json::from_str::<LoadReport>(&text).unwrap(), report);
        assert_eq!(report.queue_length(), 5);
    }
}
