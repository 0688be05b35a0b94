//! What runs the model inside the Pod.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Exactly one engine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.native)").message("set exactly one engine; `native: {}` is the one there is")
)]
pub struct Engine {
    /// llava-worker's own engine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub native: Option<NativeEngine>,
}

impl Default for Engine {
    fn default() -> Self {
        Self {
            native: Some(NativeEngine::default()),
        }
    }
}

/// llava-worker's own engine. What is left out is chosen by the worker for its device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct NativeEngine {
    /// Number format of the computation. Default: bf16 on a GPU, f32 on a CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Dtype>,
    /// Number format of the language model's weights. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization: Option<Quantization>,
    /// Tokens of one sequence, prompt and answer together. Default: as the checkpoint says.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 128, max = 1_048_576))]
    pub context_length: Option<i32>,
    /// Sequences that run at once, fewer where the memory of a GPU has no room for as many. Default: 16.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub max_running_requests: Option<i32>,
    /// Hosts from which an `image_url` may be fetched, over HTTPS. Default: none; images come inside requests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(max = 253), pattern("^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"))
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub allowed_image_hosts: Vec<String>,
}

/// Number format of the computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32-bit.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl Dtype {
    /// As `llava-worker serve --dtype` spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }
}

/// Number format of stored weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Quantization {
    /// As the computation.
    None,
    /// 8-bit integers.
    Int8,
    /// 4-bit integers.
    Int4,
}

impl Quantization {
    /// As `llava-worker serve --quantization` spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }
}
