//! LlavaWorker: one life of one worker Pod.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::deployment::conditions;
use crate::drain::Drain;
use crate::engine::Engine;
use crate::model::Model;
use crate::pod::PodOptions;
use crate::resources::Resources;

/// One worker: the resolved template of one Pod, and what it is doing.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "llava.dev",
    version = "v1alpha1",
    kind = "LlavaWorker",
    plural = "llavaworkers",
    namespaced,
    status = "LlavaWorkerStatus",
    shortname = "llw",
    category = "llava",
    derive = "PartialEq",
    doc = "One worker of a LlavaDeployment: one life of one Pod. The operator makes and removes it.",
    validation = Rule::new("size(self.metadata.name) <= 63").message("metadata.name must have at most 63 characters"),
    printcolumn(name = "Deployment", type_ = "string", json_path = ".spec.deployment", description = "The LlavaDeployment"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase", description = "Where it stands in its life"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#, description = "Whether it answers"),
    printcolumn(name = "Queue", type_ = "integer", json_path = ".status.queueLength", description = "Requests that wait at it"),
    printcolumn(name = "Running", type_ = "integer", json_path = ".status.runningRequests", description = "Requests being answered"),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.node"),
    printcolumn(name = "Heartbeat", type_ = "string", json_path = ".status.heartbeat", description = "Whether its Lease is renewed"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "GPU", type_ = "string", json_path = ".status.accelerator", priority = 1),
    printcolumn(name = "Loaded", type_ = "string", json_path = ".status.loadSeconds", priority = 1, description = "Seconds from start to the first token"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason", priority = 1, description = "Why it is in its phase"),
    printcolumn(name = "Revision", type_ = "string", json_path = ".spec.revision", priority = 1, description = "Hash of the worker template")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("spec of a LlavaWorker cannot change: it is one life of one Pod; change the LlavaDeployment"))]
pub struct LlavaWorkerSpec {
    /// The LlavaDeployment.
    #[schemars(length(min = 1, max = 63))]
    pub deployment: String,
    /// Hash of the template.
    #[schemars(length(min = 1, max = 63))]
    pub revision: String,
    /// Everything that the Pod is made of.
    pub template: WorkerTemplate,
}

/// A worker with every default applied. Its hash is the revision: a field that
/// is added later must stay out of the JSON while it has its default, or every
/// worker in the world restarts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkerTemplate {
    /// The model; its name is always set here.
    pub model: Model,
    /// What runs the model.
    pub engine: Engine,
    /// Compute resources, accelerator included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// How the worker leaves.
    pub drain: Drain,
    /// Requests that may wait at the worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub max_queue_length: Option<i32>,
    /// Seconds that a request may wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_timeout_seconds: Option<i64>,
    /// Pod-level fields; the image and the ServiceAccount are always set here.
    #[serde(flatten)]
    pub pod: PodOptions,
}

/// Where a worker stands in its life.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
)]
pub enum Phase {
    /// No process runs yet: the Pod waits for a node, an image or a volume.
    #[default]
    Pending,
    /// The process runs and brings the model up.
    Loading,
    /// Requests are answered.
    Ready,
    /// The process runs and does not answer as it should.
    Unready,
    /// Answers are finished, no new ones begun.
    Draining,
    /// The Pod ended for good.
    Failed,
}

impl Phase {
    /// As the API spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Loading => "Loading",
            Self::Ready => "Ready",
            Self::Unready => "Unready",
            Self::Draining => "Draining",
            Self::Failed => "Failed",
        }
    }
}

/// Whether a worker's Lease is renewed, by the operator's own monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Heartbeat {
    /// Never seen.
    #[default]
    Missing,
    /// Renewed in time.
    Fresh,
    /// No longer renewed.
    Stale,
}

/// What was observed of a LlavaWorker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LlavaWorkerStatus {
    /// The generation of the spec that the rest speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where it stands in its life.
    #[serde(default)]
    pub phase: Phase,
    /// Why, in one word.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub reason: Option<String>,
    /// Why, in plain words.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub message: Option<String>,
    /// The node.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node: Option<String>,
    /// Address of the Pod.
    #[serde(rename = "podIP", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub pod_ip: Option<String>,
    /// The Pod of this life. Set once; a Pod that is gone after that ends the worker.
    #[serde(rename = "podUID", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub pod_uid: Option<String>,
    /// Devices that the Pod was given, such as `1 nvidia.com/gpu`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub accelerator: Option<String>,
    /// Requests that wait at it. Refreshed every few seconds at most.
    #[serde(default)]
    pub queue_length: i32,
    /// Requests being answered.
    #[serde(default)]
    pub running_requests: i32,
    /// Requests that can be answered at once.
    #[serde(default)]
    pub slots: i32,
    /// Seconds from the start of the process to the first token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_seconds: Option<f64>,
    /// Whether its Lease is renewed.
    #[serde(default)]
    pub heartbeat: Heartbeat,
    /// The last renewal that was seen when this status was written. A worker at rest writes no
    /// status, so this lags behind while `heartbeat` is Fresh and is exact once it is Stale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_heartbeat: Option<Time>,
    /// Scheduled, Ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
}
