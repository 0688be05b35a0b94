//! The vision tower's part of a configuration: CLIP and SigLIP vision models.

use super::fields::{ConfigError, Fields};

/// Which vision architecture a tower is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VisionKind {
    /// CLIP: a class token first, a norm before the layers.
    Clip,
    /// SigLIP: patches only, with a bias.
    Siglip,
}

/// The activation between the two products of a feed-forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(1.702 x)`, CLIP's.
    QuickGelu,
    /// GELU by the error function.
    Gelu,
    /// GELU by tanh, SigLIP's.
    GeluTanh,
}

impl Activation {
    /// The activation that transformers means by `name`.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "quick_gelu" => Some(Self::QuickGelu),
            "gelu" => Some(Self::Gelu),
            "gelu_pytorch_tanh" | "gelu_new" => Some(Self::GeluTanh),
            _ => None,
        }
    }
}

/// A vision tower's sizes.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// Which architecture.
    pub kind: VisionKind,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the feed-forward.
    pub intermediate: usize,
    /// Layers that the tower has.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Sides of the square input in pixels.
    pub image_size: usize,
    /// Sides of a patch in pixels.
    pub patch_size: usize,
    /// Epsilon of the layer norms.
    pub norm_eps: f64,
    /// Activation of the feed-forward.
    pub activation: Activation,
}

impl VisionConfig {
    /// Reads a `vision_config` object or the `config.json` of a tower's own
    /// folder, whose fields may sit under `vision_config` as well.
    pub fn parse(fields: &Fields<'_>) -> Result<Self, ConfigError> {
        if let Some(inner) = fields.object("vision_config")? {
            return Self::parse(&inner);
        }
        let kind = match fields.text("model_type")? {
            None | Some("clip_vision_model" | "clip") => VisionKind::Clip,
            Some("siglip_vision_model" | "siglip") => VisionKind::Siglip,
            Some(other) => {
                return Err(fields.wrong(
                    "model_type",
                    format!("is `{other}`, but only CLIP and SigLIP vision models are known"),
                ));
            }
        };
        let (patch, norm_eps, activation) = match kind {
            VisionKind::Clip => (32, 1e-5, Activation::QuickGelu),
            VisionKind::Siglip => (16, 1e-6, Activation::GeluTanh),
        };
        let activation = match fields.text("hidden_act")? {
            None => activation,
            Some(name) => Activation::parse(name).ok_or_else(|| {
                fields.wrong(
                    "hidden_act",
                    format!("is `{name}`, which is not a known GELU"),
                )
            })?,
        };
        let config = Self {
            kind,
            hidden: fields.count("hidden_size", 768)?,
            intermediate: fields.count("intermediate_size", 3072)?,
            layers: fields.count("num_hidden_layers", 12)?,
            heads: fields.count("num_attention_heads", 12)?,
            image_size: fields.count("image_size", 224)?,
            patch_size: fields.count("patch_size", patch)?,
            norm_eps: fields.positive("layer_norm_eps", norm_eps)?,
            activation,
        };
        if !config.hidden.is_multiple_of(config.heads) {
            return Err(fields.wrong(
                "num_attention_heads",
                format!(
                    "is {}, which does not divide hidden_size {}",
                    config.heads, config.hidden
                ),
            ));
        }
        if config.patch_size > config.image_size {
            return Err(fields.wrong(
                "patch_size",
                format!(
                    "is {}, larger than image_size {}",
                    config.patch_size, config.image_size
                ),
            ));
        }
        Ok(config)
    }

    /// The tower behind a hub name, for original checkpoints that carry the
    /// tower's weights and only name it.
    pub fn known(name: &str) -> Option<Self> {
        let clip = |image_size| Self {
            kind: VisionKind::Clip,
            hidden: 1024,
            intermediate: 4096,
            layers: 24,
            heads: 16,
            image_size,
            patch_size: 14,
            norm_eps: 1e-5,
            activation: Activation::QuickGelu,
        };
        match name {
            "openai/clip-vit-large-patch14-336" => Some(clip(336)),
            "openai/clip-vit-large-patch14" => Some(clip(224)),
            "google/siglip-so400m-patch14-384" => Some(Self {
                kind: VisionKind::Siglip,
                hidden: 1152,
                intermediate: 4304,
                layers: 27,
                heads: 16,
                image_size: 384,
                patch_size: 14,
                norm_eps: 1e-6,
                activation: Activation::GeluTanh,
            }),
            _ => None,
        }
    }

    /// Patches along one side of the input.
    pub fn side(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// Positions of the tower: patches, and CLIP's class token.
    pub fn positions(&self) -> usize {
        let class = usize::from(self.kind == VisionKind::Clip);
        self.side() * self.side() + class
    }
}
