//! Where a checkpoint comes from.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Exactly one place that holds a checkpoint in the layout of Hugging Face
/// (`config.json`, `*.safetensors`, tokenizer files).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.huggingFace), has(self.persistentVolumeClaim), has(self.image), has(self.objectStore), has(self.http), has(self.hostPath)].filter(set, set).size() == 1")
        .message("set exactly one of huggingFace, persistentVolumeClaim, image, objectStore, http and hostPath in the source")
)]
pub struct Source {
    /// A repository of the Hugging Face Hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugging_face: Option<HuggingFace>,
    /// A volume of the same namespace that holds the checkpoint already; mounted read-only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<PersistentVolumeClaim>,
    /// An OCI image or artifact that holds the checkpoint, mounted as a Kubernetes image volume (Kubernetes 1.33 or later).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// A folder of an object store.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_store: Option<ObjectStore>,
    /// One archive or file on a web server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<Http>,
    /// A directory of the node; refused unless the operator runs with --allow-host-path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_path: Option<HostPath>,
}

/// A repository of the Hugging Face Hub.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HuggingFace {
    /// The repository, `owner/name`.
    #[schemars(
        length(max = 200),
        pattern("^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$")
    )]
    pub repo: String,
    /// A branch, tag or commit; pin a commit for workers that are equal for ever. Default: the repository's main branch.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 200), pattern("^[A-Za-z0-9][A-Za-z0-9._/-]*$"))]
    pub revision: Option<String>,
    /// The key of a Secret that holds a Hub token, for gated and private repositories.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<SecretKeyRef>,
}

/// A volume of the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PersistentVolumeClaim {
    /// The PersistentVolumeClaim.
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,
    /// The folder of the checkpoint within the volume. Default: its root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "relative_path")]
    pub path: Option<String>,
}

/// An OCI image that is mounted, not run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// The image, such as `registry.example/llava:7b` or with `@sha256:…`.
    #[schemars(length(min = 1, max = 512), pattern("^[^\\s]+$"))]
    pub reference: String,
    /// When the node pulls it. Default: Always for the tag `latest`, else IfNotPresent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pull_policy: Option<PullPolicy>,
    /// The folder of the checkpoint within the image. Default: its root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "relative_path")]
    pub path: Option<String>,
}

/// When a node pulls an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PullPolicy {
    /// At every start.
    Always,
    /// When the node lacks it.
    IfNotPresent,
    /// Never; it must be there.
    Never,
}

impl PullPolicy {
    /// As a Pod spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// A folder of an object store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ObjectStore {
    /// The folder: `s3://bucket/path`, `gs://bucket/path` or `az://container/path`.
    #[schemars(length(max = 1024), pattern("^(s3|gs|az)://[^/\\s]+(/[^\\s]*)?$"))]
    pub url: String,
    /// A Secret whose keys become the worker's environment, such as `AWS_ACCESS_KEY_ID`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
}

/// One archive or file on a web server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Http {
    /// The address, `https://…`.
    #[schemars(length(max = 2048), pattern("^https?://[^/\\s#]+(/[^\\s#]*)?$"))]
    pub url: String,
    /// SHA-256 of the content in hexadecimal; the worker refuses any other.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), pattern("^[0-9a-f]{64}$"))]
    pub sha256: Option<String>,
}

/// A directory of the node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostPath {
    /// The absolute path of the checkpoint on every node that may run a worker.
    #[schemars(length(max = 1024), pattern("^/[^\\s]*$"))]
    pub path: String,
}

/// A Secret of the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// One key of a Secret of the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key within the Secret.
    #[schemars(length(min = 1, max = 253), pattern("^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// A path below a volume's root: not absolute, and it cannot climb out.
fn relative_path(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "string",
        "nullable": true,
        "minLength": 1,
        "maxLength": 1024,
        "x-kubernetes-validations": [{
            "rule": "!self.startsWith('/') && !self.split('/').exists(part, part == '..')",
            "message": "path is relative to the root of the volume and must not contain `..`; drop the leading `/`",
        }],
    })
}
