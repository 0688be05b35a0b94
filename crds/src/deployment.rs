//! LlavaDeployment: a model and how it is served.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::autoscaling::Autoscaling;
use crate::drain::Drain;
use crate::engine::Engine;
use crate::model::Model;
use crate::pod::PodOptions;
use crate::resources::{Accelerator, Resources};
use crate::rollout::Rollout;
use crate::routing::Routing;

/// The longest name of a LlavaDeployment: `<name>-<revision>-<ordinal>` must be
/// a label value and a host name, 63 characters.
pub const MAX_NAME_LENGTH: usize = 48;

/// A LLaVA model, served by workers.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "llava.dev",
    version = "v1alpha1",
    kind = "LlavaDeployment",
    plural = "llavadeployments",
    namespaced,
    status = "LlavaDeploymentStatus",
    shortname = "lld",
    category = "llava",
    derive = "PartialEq",
    doc = "A LLaVA model, served by workers.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    validation = Rule::new("size(self.metadata.name) <= 48 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name must have at most 48 characters, begin with a letter and hold only a-z, 0-9 and `-`: workers, Services and labels are named after it"),
    printcolumn(name = "Model", type_ = "string", json_path = ".status.model", description = "What clients ask for"),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".status.desiredReplicas", description = "Workers wished for"),
    printcolumn(name = "Ready", type_ = "integer", json_path = ".status.readyReplicas", description = "Workers that answer"),
    printcolumn(name = "Up-to-date", type_ = "integer", json_path = ".status.updatedReplicas", description = "Workers with the template of the spec"),
    printcolumn(name = "Available", type_ = "integer", json_path = ".status.availableReplicas", description = "Workers that answer and stay"),
    printcolumn(name = "Queue", type_ = "integer", json_path = ".status.queueLength", description = "Requests that wait"),
    printcolumn(name = "Status", type_ = "string", json_path = ".status.summary", description = "One word on how it stands"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Quant", type_ = "string", json_path = ".spec.engine.native.quantization", priority = 1, description = "Format of the weights"),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.url", priority = 1, description = "Where clients ask"),
    printcolumn(name = "Revision", type_ = "string", json_path = ".status.updateRevision", priority = 1, description = "Hash of the worker template"),
    printcolumn(name = "Image", type_ = "string", json_path = ".status.image", priority = 1, description = "Image of the workers")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(has(self.replicas) && has(self.autoscaling))").message("set either replicas or autoscaling, not both: with autoscaling the operator chooses the number; remove replicas"),
    validation = Rule::new("!has(self.accelerator) || !has(self.resources) || !has(self.resources.limits) || !(self.accelerator.resource in self.resources.limits)").message("accelerator and resources.limits name the same device; remove one of them"),
)]
pub struct LlavaDeploymentSpec {
    /// The model.
    pub model: Model,
    /// What runs the model.
    #[serde(default)]
    pub engine: Engine,
    /// Compute resources of each worker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Shorthand for GPUs: limit, node selector and toleration in one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<Accelerator>,
    /// Workers. Default: 1. Set it to scale by hand or by a HorizontalPodAutoscaler; leave it out with autoscaling.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: Option<i32>,
    /// Lets the operator choose the number of workers by their queues.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// Bounds of rolling updates.
    #[serde(default)]
    pub rollout: Rollout,
    /// How workers leave.
    #[serde(default)]
    pub drain: Drain,
    /// How requests find a worker.
    #[serde(default)]
    pub routing: Routing,
    /// Pod-level fields.
    #[serde(flatten)]
    pub pod: PodOptions,
}

/// What was observed of a LlavaDeployment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LlavaDeploymentStatus {
    /// The generation of the spec that the rest speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The name that clients send as `model`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub model: Option<String>,
    /// Workers wished for: `spec.replicas`, or what the scaler chose.
    #[serde(default)]
    pub desired_replicas: i32,
    /// Workers that live: not terminating, not failed.
    #[serde(default)]
    pub replicas: i32,
    /// Workers that answer.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Workers with the template of the spec.
    #[serde(default)]
    pub updated_replicas: i32,
    /// Workers that answer and are not on their way out.
    #[serde(default)]
    pub available_replicas: i32,
    /// Label selector of the worker Pods, for HorizontalPodAutoscalers.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub selector: Option<String>,
    /// The revision that was last rolled out completely.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub current_revision: Option<String>,
    /// The revision of the spec.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub update_revision: Option<String>,
    /// The image of workers of the spec's revision.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub image: Option<String>,
    /// Requests that wait, at workers and in routers. Refreshed every few seconds at most.
    #[serde(default)]
    pub queue_length: i32,
    /// Requests being answered.
    #[serde(default)]
    pub running_requests: i32,
    /// Base URL for clients within the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub url: Option<String>,
    /// One word on how it stands: `Ready`, or the reason why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub summary: Option<String>,
    /// When the rollout last came forward; `spec.rollout.progressDeadline` counts from here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_progress_time: Option<Time>,
    /// Available, Progressing, Degraded, DeleteFirst.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions")]
    pub conditions: Vec<Condition>,
}

/// A list keyed by the condition's type, so that appliers can share it.
pub(crate) fn conditions(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let mut schema = Vec::<Condition>::json_schema(generator);
    schema.insert("maxItems".into(), 16.into());
    schema.insert("x-kubernetes-list-type".into(), "map".into());
    schema.insert("x-kubernetes-list-map-keys".into(), vec!["type"].into());
    schema
}
