//! What the operator is told when it starts.

use std::time::Duration;

use k8s_openapi::api::networking::v1::NetworkPolicySpec;

use crate::world::Scope;

/// Everything that shapes reconciliation.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which namespaces are served.
    pub scope: Scope,
    /// The namespace of the routers, whose Leases carry demand.
    pub router_namespace: String,
    /// Base URL that `status.url` shows.
    pub url: Option<String>,
    /// The image of workers whose deployment names none.
    pub worker_image: Option<String>,
    /// Whether sources may be directories of the node.
    pub allow_host_path: bool,
    /// Who may reach workers and whom they may reach; everybody when absent.
    pub worker_network_policy: Option<NetworkPolicySpec>,
    /// How long a surge worker may find no room before an old one goes first.
    pub surge_patience: Duration,
    /// How long one call of the API server may take.
    pub call_timeout: Duration,
    /// Calls of the API server at once.
    pub concurrency: u16,
}
