//! The programs of a cluster and their command lines.

use std::{fmt, str::FromStr};

use super::{parts::Parts, place::Place};

/// The name of the node that runs real containers.
pub const REAL_NODE: &str = "node-0";

/// A program of the cluster, in the order of their start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    /// The store.
    Etcd,
    /// The API server.
    ApiServer,
    /// The controllers: garbage collection, namespaces, Deployments, ….
    ControllerManager,
    /// Gives Pods their nodes.
    Scheduler,
    /// Plays the kubelets of the fake nodes.
    Kwok,
    /// Runs containers.
    Containerd,
    /// Runs Pods.
    Kubelet,
    /// Makes Services reachable.
    Proxy,
    /// Enforces NetworkPolicies.
    NetworkPolicies,
}

impl Program {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Etcd,
        Self::ApiServer,
        Self::ControllerManager,
        Self::Scheduler,
        Self::Kwok,
        Self::Containerd,
        Self::Kubelet,
        Self::Proxy,
        Self::NetworkPolicies,
    ];

    /// The file name of the program, and the stem of its log's.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Kwok => "kwok",
            Self::Containerd => "containerd",
            Self::Kubelet => "kubelet",
            Self::Proxy => "kube-proxy",
            Self::NetworkPolicies => "network-policies",
        }
    }

    /// What it finds in its environment. Collecting garbage later spares a fifth of
    /// the processor time of a start, for 150 MiB. The controllers stay as they are
    /// shipped: benchmarks measure beside them.
    pub(super) fn environment(self) -> Option<(&'static str, &'static str)> {
        (self != Self::ControllerManager).then_some(("GOGC", "400"))
    }

    /// Its command line in a place. `/run` and `/var/lib` are the cluster's own
    /// and go with it, so all that is big lies there.
    pub(super) fn arguments(self, place: &Place, parts: &Parts) -> Vec<String> {
        let network = place.network();
        let (node, services) = (network.node(), network.services());
        let folder = place.folder().display();
        let text = match self {
            Self::Etcd => "--data-dir=/run/etcd --unsafe-no-fsync --log-level=warn \
                --listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379 \
                --listen-peer-urls=http://127.0.0.1:2380 --initial-advertise-peer-urls=http://127.0.0.1:2380 \
                --initial-cluster=default=http://127.0.0.1:2380"
                .to_owned(),
            Self::ApiServer => format!(
                "--etcd-servers=http://127.0.0.1:2379 --advertise-address={node} --cert-dir={folder}/pki \
                --token-auth-file={folder}/tokens.csv --authorization-mode=Node,RBAC \
                --enable-admission-plugins=NodeRestriction --allow-privileged \
                --service-cluster-ip-range={services} --kubelet-preferred-address-types=InternalIP \
                --service-account-issuer=https://kubernetes.default.svc.cluster.local \
                --service-account-key-file={folder}/service-accounts.key \
                --service-account-signing-key-file={folder}/service-accounts.key"
            ),
            Self::ControllerManager => format!(
                "--kubeconfig={folder}/{self}.kubeconfig --leader-elect=false --secure-port=0 \
                --service-account-private-key-file={folder}/service-accounts.key \
                --root-ca-file={folder}/pki/apiserver.crt --kube-api-qps=500 --kube-api-burst=1000 \
                --horizontal-pod-autoscaler-sync-period=2s"
            ),
            Self::Scheduler => format!(
                "--kubeconfig={folder}/{self}.kubeconfig --leader-elect=false --secure-port=0 \
                --kube-api-qps=500 --kube-api-burst=1000"
            ),
            Self::Kwok => format!(
                "--kubeconfig={folder}/admin.kubeconfig --config={folder}/kwok.yaml --node-ip={node} \
                --manage-all-nodes=false --manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake \
                --node-lease-duration-seconds=40 --server-address=127.0.0.1:10247"
            ),
            Self::Containerd => format!("--config={folder}/containerd.toml"),
            Self::Kubelet => format!(
                "--config={folder}/kubelet.yaml --kubeconfig={folder}/{self}.kubeconfig \
                --root-dir=/run/kubelet --hostname-override={REAL_NODE} --node-ip={node}"
            ),
            Self::Proxy => format!("--config={folder}/kube-proxy.yaml"),
            Self::NetworkPolicies => {
                format!("--kubeconfig={folder}/admin.kubeconfig")
            }
        };
        let mut words = vec![parts.path(self.name()).display().to_string()];
        words.extend(text.split_whitespace().map(str::to_owned));
        words
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Program {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|program| program.name() == name)
            .ok_or_else(|| format!("no program {name:?} in a cluster"))
    }
}
