//! The Pod-level fields that people need, as Pods spell them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Affinity, EnvVar, LocalObjectReference, Toleration, TopologySpreadConstraint,
};
use kube::KubeSchema;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Where and how worker Pods run. Flattened into the spec of both kinds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodOptions {
    /// The image of llava-worker. Default: the operator's --worker-image.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), pattern("^[^\\s]+$"))]
    pub image: Option<String>,
    /// Secrets for pulling images.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// Labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "label_map")]
    #[x_kube(validation = Rule::new("self.all(key, key.matches('^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$'))").message("nodeSelector keys must look like `name` or `prefix.example/name`"))]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the workers bear.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// Affinity to nodes and to other Pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,
    /// How workers spread over zones and nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub topology_spread_constraints: Vec<TopologySpreadConstraint>,
    /// The PriorityClass.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// The RuntimeClass, such as `nvidia`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub runtime_class_name: Option<String>,
    /// A ServiceAccount of your own, for cloud identities. Default: one that the operator makes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253), pattern("^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))]
    pub service_account_name: Option<String>,
    /// Further environment of the worker container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(
        validation = Rule::new("self.all(e, !(e.name in ['POD_NAME', 'POD_NAMESPACE', 'POD_UID', 'HF_TOKEN']))").message("env must not name POD_NAME, POD_NAMESPACE, POD_UID or HF_TOKEN: the operator sets them; for a Hub token use source.huggingFace.tokenSecretRef"),
        validation = Rule::new("self.all(e, size(e.name) > 0)").message("env entries need a name"),
        merge_strategy = ListMerge::Map(vec!["name".into()]),
    )]
    pub env: Vec<EnvVar>,
    /// Further labels of the Pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "label_map")]
    #[x_kube(validation = Rule::new("self.all(key, !key.startsWith('llava.dev/') && !key.startsWith('app.kubernetes.io/'))").message("labels must not begin with llava.dev/ or app.kubernetes.io/: the operator sets those"), validation = Rule::new("self.all(key, key.matches('^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$'))").message("labels keys must look like `name` or `prefix.example/name`"))]
    pub labels: BTreeMap<String, String>,
    /// Further annotations of the Pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "annotation_map")]
    #[x_kube(validation = Rule::new("self.all(key, !key.startsWith('llava.dev/'))").message("annotations must not begin with llava.dev/: the operator sets those"), validation = Rule::new("self.all(key, key.matches('^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$'))").message("annotations keys must look like `name` or `prefix.example/name`"))]
    pub annotations: BTreeMap<String, String>,
}

fn label_map(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 64,
        "additionalProperties": {
            "type": "string",
            "maxLength": 63,
            "pattern": "^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?$",
        },
    })
}

fn annotation_map(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 64,
        "additionalProperties": { "type": "string", "maxLength": 8192 },
    })
}
