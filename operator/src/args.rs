//! The operator's command line.

use std::time::Duration;

use clap::Parser;
use k8s_openapi::api::networking::v1::NetworkPolicySpec;
use shell::args::ShellArgs;

use crate::run::Candidate;
use crate::settings::Settings;
use crate::world::Scope;

/// Reconciles LlavaDeployments into workers
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub struct Args {
    #[command(flatten)]
    #[expect(
        missing_docs,
        reason = "clap would show it as the program's description"
    )]
    pub shell: ShellArgs,

    /// The namespace to serve; without it all of them, which needs cluster-wide rights
    #[arg(long, env = "LLAVA_NAMESPACE", value_name = "NAMESPACE")]
    pub namespace: Option<String>,

    /// Image of llava-worker for deployments that name none
    #[arg(long, env = "LLAVA_WORKER_IMAGE", value_name = "IMAGE")]
    pub worker_image: Option<String>,

    /// Namespace of llava-router, whose Leases tell what waits for workers; without it the operator's own
    #[arg(long, env = "LLAVA_ROUTER_NAMESPACE", value_name = "NAMESPACE")]
    pub router_namespace: Option<String>,

    /// Base URL of llava-router, shown in `status.url`
    #[arg(long, env = "LLAVA_URL", value_name = "URL")]
    pub url: Option<String>,

    /// Allows sources of the kind hostPath
    #[arg(long, env = "LLAVA_ALLOW_HOST_PATH")]
    pub allow_host_path: bool,

    /// Rules of the NetworkPolicy that each LlavaDeployment's workers get, as the `spec` of one in JSON; without it they get none
    #[arg(long, env = "LLAVA_WORKER_NETWORK_POLICY", value_name = "JSON", value_parser = network_policy)]
    pub worker_network_policy: Option<NetworkPolicySpec>,

    /// How long a surge worker may find no room before an old worker goes first
    #[arg(long, default_value = "15s", value_name = "DURATION")]
    pub surge_patience: crds::duration::Duration,

    /// How long one call of the API server may take
    #[arg(long, default_value = "10s", value_name = "DURATION")]
    pub call_timeout: crds::duration::Duration,

    /// Calls of the API server under way at once; more wait for their turn
    #[arg(long, default_value_t = 16, value_name = "COUNT")]
    pub concurrency: u16,

    /// Name of the Lease that replicas elect their leader with
    #[arg(long, default_value = "llava-operator", value_name = "NAME")]
    pub lease: String,

    /// Lead without an election; only for a process that is alone by design
    #[arg(long)]
    pub no_leader_election: bool,

    /// This Pod's name: the identity in the election
    #[arg(long, env = "POD_NAME", value_name = "NAME", hide = true)]
    pub pod_name: Option<String>,

    /// This Pod's namespace: where the Lease is
    #[arg(long, env = "POD_NAMESPACE", value_name = "NAMESPACE", hide = true)]
    pub pod_namespace: Option<String>,
}

fn network_policy(text: &str) -> Result<NetworkPolicySpec, serde_json::Error> {
    serde_json::from_str(text)
}

impl Args {
    /// What shapes reconciliation. `here` is the namespace that the client is in.
    #[must_use]
    pub fn settings(&self, here: &str) -> Settings {
        let own = self.pod_namespace.as_deref().unwrap_or(here);
        Settings {
            scope: match &self.namespace {
                Some(namespace) => Scope::Namespace(namespace.clone()),
                None => Scope::Cluster,
            },
            router_namespace: self
                .router_namespace
                .clone()
                .unwrap_or_else(|| own.to_owned()),
            url: self.url.clone(),
            worker_image: self.worker_image.clone(),
            allow_host_path: self.allow_host_path,
            worker_network_policy: self.worker_network_policy.clone(),
            surge_patience: self.surge_patience.get(),
            call_timeout: self.call_timeout.get().max(Duration::from_millis(1)),
            concurrency: self.concurrency.max(1),
        }
    }

    /// How this process stands for election.
    #[must_use]
    pub fn candidate(&self, here: &str) -> Option<Candidate> {
        let identity = || format!("llava-operator-{}", std::process::id());
        (!self.no_leader_election).then(|| Candidate {
            namespace: self
                .pod_namespace
                .clone()
                .unwrap_or_else(|| here.to_owned()),
            lease: self.lease.clone(),
            identity: self.pod_name.clone().unwrap_or_else(identity),
        })
    }
}
