//! The model that a deployment serves.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::source::Source;

/// What clients ask for and where its weights come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.name) || !has(self.aliases) || !(self.name in self.aliases)")
        .message("aliases must not repeat name; remove it from aliases")
)]
pub struct Model {
    /// The name that clients send as `model`. Default: the name of the LlavaDeployment.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 128),
        pattern("^[A-Za-z0-9]([A-Za-z0-9._:/-]*[A-Za-z0-9])?$")
    )]
    pub name: Option<String>,
    /// Further names under which clients reach the model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(
            length(max = 128),
            pattern("^[A-Za-z0-9]([A-Za-z0-9._:/-]*[A-Za-z0-9])?$")
        )
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub aliases: Vec<String>,
    /// The checkpoint.
    pub source: Source,
    /// The language model below a LoRA or projector-only checkpoint; leave it out for a full checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<Source>,
    /// The prompt format, such as `vicuna_v1`, `mistral_instruct` or `chatml_direct`. Default: chosen from the checkpoint as LLaVA does.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64), pattern("^[a-z0-9][a-z0-9_]*$"))]
    pub conversation_template: Option<String>,
    /// How images are brought to the vision tower's size. Default: as the checkpoint says.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), pattern("^(square|pad|anyres(_max_[0-9]{1,2})?)$"))]
    pub image_aspect_ratio: Option<String>,
}
