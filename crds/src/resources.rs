//! What a worker needs of its node.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// The resource that NVIDIA's device plugin offers.
pub const NVIDIA_GPU: &str = "nvidia.com/gpu";
/// The node label in which GPU feature discovery publishes the product.
pub const NVIDIA_GPU_PRODUCT: &str = "nvidia.com/gpu.product";

/// Compute resources of the worker container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.requests) || !has(self.limits) || self.requests.all(name, !(name in self.limits) || quantity(string(self.requests[name])).compareTo(quantity(string(self.limits[name]))) <= 0)")
        .message("each of requests must be at most the same entry of limits")
)]
pub struct Resources {
    /// What the scheduler sets aside, such as `cpu: "4"` and `memory: 16Gi`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub requests: BTreeMap<String, Quantity>,
    /// What the worker cannot exceed. GPUs belong here: `nvidia.com/gpu: 1`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "quantities")]
    pub limits: BTreeMap<String, Quantity>,
}

/// Shorthand for a GPU: the limit, the node selector and the toleration in one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Accelerator {
    /// The extended resource that the node's device plugin offers.
    #[serde(default = "nvidia_gpu")]
    #[schemars(
        length(max = 253),
        pattern("^[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")
    )]
    pub resource: String,
    /// Devices for each worker.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 64))]
    pub count: i32,
    /// The product as the node label `nvidia.com/gpu.product` spells it, such as `NVIDIA-L4`. Default: any.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 63),
        pattern("^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$")
    )]
    pub product: Option<String>,
}

fn nvidia_gpu() -> String {
    NVIDIA_GPU.to_owned()
}

fn one() -> i32 {
    1
}

/// Kubernetes takes a quantity as a number or a string; k8s-openapi's schema only the latter.
fn quantities(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": {
            "x-kubernetes-int-or-string": true,
            "maxLength": 64,
            "pattern": r"^[+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$",
        },
    })
}
