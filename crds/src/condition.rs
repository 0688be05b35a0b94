//! Condition types and reasons: each word in this one place, for programs that
//! wait on them. Reasons that Kubernetes itself gives (`ImagePullBackOff`,
//! `Unschedulable`, `OOMKilled`, …) are passed on as they are.

/// Types of a LlavaDeployment's conditions.
pub mod deployment {
    /// Enough workers answer; also true for a deployment that sleeps at zero.
    pub const AVAILABLE: &str = "Available";
    /// The workers are on their way to the spec; false once the deadline passed.
    pub const PROGRESSING: &str = "Progressing";
    /// Some worker fails or is missing; the message says which and why.
    pub const DEGRADED: &str = "Degraded";
    /// A rollout goes on with one worker fewer because no node had room for a further one.
    pub const DELETE_FIRST: &str = "DeleteFirst";
}

/// Types of a LlavaWorker's conditions.
pub mod worker {
    /// The Pod has a node.
    pub const SCHEDULED: &str = "Scheduled";
    /// Requests are answered.
    pub const READY: &str = "Ready";
}

/// Reasons and summaries that are ours.
pub mod reason {
    /// Every wished worker answers.
    pub const READY: &str = "Ready";
    /// No worker is wished for now.
    pub const SCALED_TO_ZERO: &str = "ScaledToZero";
    /// A rollout goes on.
    pub const UPDATING: &str = "Updating";
    /// The wished number changed and workers come or go.
    pub const SCALING: &str = "Scaling";
    /// Nothing was observed yet.
    pub const UNKNOWN: &str = "Unknown";
    /// `spec.rollout.paused` holds a rollout.
    pub const PAUSED: &str = "Paused";
    /// All workers have the template of the spec and answer.
    pub const COMPLETE: &str = "Complete";
    /// `spec.rollout.progressDeadline` passed without progress.
    pub const PROGRESS_DEADLINE_EXCEEDED: &str = "ProgressDeadlineExceeded";
    /// A hostPath source although the operator does not allow them.
    pub const HOST_PATH_NOT_ALLOWED: &str = "HostPathNotAllowed";
    /// Neither the spec nor the operator names a worker image.
    pub const NO_WORKER_IMAGE: &str = "NoWorkerImage";
    /// The object cannot be read as a LlavaDeployment.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// The API server refused an object of the worker.
    pub const CREATE_REFUSED: &str = "CreateRefused";
    /// Another object holds a name that a worker needs.
    pub const NAME_TAKEN: &str = "NameTaken";
    /// Workers answer, fewer than wished.
    pub const WORKERS_MISSING: &str = "WorkersMissing";
    /// Nothing is wrong.
    pub const HEALTHY: &str = "Healthy";
    /// No node has room for a further worker; the update goes one by one.
    pub const NO_ROOM_FOR_SURGE: &str = "NoRoomForSurge";
    /// The rollout stays within its bounds.
    pub const WITHIN_BOUNDS: &str = "WithinBounds";
    /// The Pod does not exist yet.
    pub const POD_MISSING: &str = "PodMissing";
    /// The Pod was deleted by someone else.
    pub const POD_DELETED: &str = "PodDeleted";
    /// The Pod waits for a node.
    pub const UNSCHEDULED: &str = "Unscheduled";
    /// No node fits; Kubernetes' own word.
    pub const UNSCHEDULABLE: &str = "Unschedulable";
    /// A PersistentVolumeClaim that the Pod needs does not exist.
    pub const VOLUME_CLAIM_MISSING: &str = "VolumeClaimMissing";
    /// A PersistentVolumeClaim that the Pod needs has no volume.
    pub const VOLUME_CLAIM_PENDING: &str = "VolumeClaimPending";
    /// The StorageClass of a PersistentVolumeClaim does not exist.
    pub const STORAGE_CLASS_MISSING: &str = "StorageClassMissing";
    /// A Secret that the Pod needs does not exist.
    pub const SECRET_MISSING: &str = "SecretMissing";
    /// The node sets the Pod up.
    pub const STARTING: &str = "Starting";
    /// The checkpoint is being fetched.
    pub const FETCHING: &str = "Fetching";
    /// Weights are being read.
    pub const LOADING: &str = "Loading";
    /// The first tokens are being produced.
    pub const WARMING_UP: &str = "WarmingUp";
    /// The process runs and its readiness probe fails.
    pub const PROBE_FAILING: &str = "ProbeFailing";
    /// The worker finishes its answers and goes.
    pub const DRAINING: &str = "Draining";
    /// The worker ended by itself.
    pub const COMPLETED: &str = "Completed";
    /// The Lease is not renewed, although the Pod looks well or its node does not say otherwise.
    pub const HEARTBEAT_LOST: &str = "HeartbeatLost";
}
