//! Labels, annotations, container and field names: each in this one place.

/// The API group of both kinds; also the prefix of our labels and annotations.
pub const GROUP: &str = "llava.dev";

/// Who applies our objects (server-side apply's field manager).
pub const FIELD_MANAGER: &str = "llava-operator";

/// Label keys.
pub mod label {
    /// What the object is: [`WORKER`](super::WORKER), `llava-router`, ….
    pub const NAME: &str = "app.kubernetes.io/name";
    /// The LlavaDeployment that the object serves, or the Helm release.
    pub const INSTANCE: &str = "app.kubernetes.io/instance";
    /// Always [`FIELD_MANAGER`](super::FIELD_MANAGER) on what the operator makes.
    pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
    /// The LlavaDeployment, on LlavaWorkers, Pods and Leases.
    pub const DEPLOYMENT: &str = "llava.dev/deployment";
    /// The hash of the worker template, on LlavaWorkers and Pods.
    pub const REVISION: &str = "llava.dev/revision";
    /// The LlavaWorker, on Pods and Leases.
    pub const WORKER: &str = "llava.dev/worker";
}

/// Annotation keys.
pub mod annotation {
    /// A worker's `protocol::load::LoadReport`, on its Lease.
    pub const LOAD: &str = "llava.dev/load";
    /// A router replica's `protocol::load::RouterReport`, on its Lease.
    pub const ROUTER_LOAD: &str = "llava.dev/router-load";
}

/// Value of [`label::NAME`] on worker Pods and Leases.
pub const WORKER: &str = "llava-worker";
/// Value of [`label::NAME`] on router Pods and Leases.
pub const ROUTER: &str = "llava-router";
/// The worker's container in its Pod.
pub const WORKER_CONTAINER: &str = "worker";

/// What a LlavaDeployment's Service, PodDisruptionBudget, ServiceAccount, Role,
/// RoleBinding and NetworkPolicy are named.
#[must_use]
pub fn child_name(deployment: &str) -> String {
    format!("{deployment}-workers")
}

/// How long a worker's Lease is good for without renewal, seconds.
pub const LEASE_DURATION_SECONDS: i32 = 15;
/// How often a worker renews its Lease, seconds.
pub const LEASE_RENEW_SECONDS: u64 = 5;

/// Environment of the worker container, filled by the downward API.
pub mod env {
    /// The Pod's name, which its Lease and LlavaWorker share.
    pub const POD_NAME: &str = "POD_NAME";
    /// The Pod's namespace.
    pub const POD_NAMESPACE: &str = "POD_NAMESPACE";
    /// The Pod's UID: the holder of the Lease.
    pub const POD_UID: &str = "POD_UID";
    /// A token of the Hugging Face Hub, from a Secret.
    pub const HF_TOKEN: &str = "HF_TOKEN";
}

/// Where the worker container finds things.
pub mod path {
    /// The checkpoint, when a volume brings it.
    pub const MODEL: &str = "/model";
    /// The base of a LoRA or projector-only checkpoint, when a volume brings it.
    pub const BASE_MODEL: &str = "/base-model";
    /// Scratch for fetched checkpoints.
    pub const CACHE: &str = "/cache";
    /// Where the last error goes so that the Pod's status shows it.
    pub const TERMINATION_LOG: &str = "/dev/termination-log";
}
