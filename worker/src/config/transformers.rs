//! transformers' `config.json`: `llava`, `llava_next` and `llava_onevision`,
//! old (sparse) and new (5.x) alike.

use super::image::{Aspect, ImageConfig};
use super::{
    Activation, ConfigError, Family, Fields, Layout, ModelConfig, ProjectorConfig, TextConfig,
    TextKind, Tower, VisionConfig, VisionKind, tower_layers,
};
use serde_json::Map;

pub(super) fn parse(fields: &Fields<'_>) -> Result<ModelConfig, ConfigError> {
    let model_type = fields.text("model_type")?.unwrap_or("llava");
    let family = match model_type {
        "llava" => Family::Llava,
        "llava_next" => Family::LlavaNext,
        "llava_onevision" => Family::OneVision,
        other => {
            return Err(fields.wrong(
                "model_type",
                format!("is `{other}`, but only llava, llava_next and llava_onevision are known"),
            ));
        }
    };
    let text = text(fields)?;
    let vision = vision(fields)?;
    let select = fields.integer(
        "vision_feature_layer",
        if family == Family::OneVision { -1 } else { -2 },
    )?;
    let default_strategy = if family == Family::OneVision {
        "full"
    } else {
        "default"
    };
    let full = match fields
        .text("vision_feature_select_strategy")?
        .unwrap_or(default_strategy)
    {
        "default" => false,
        "full" => true,
        other => {
            return Err(fields.wrong(
                "vision_feature_select_strategy",
                format!("is `{other}`, but only `default` and `full` are known"),
            ));
        }
    };
    if !full && vision.kind == VisionKind::Siglip {
        return Err(fields.wrong(
            "vision_feature_select_strategy",
            "is `default`, which would drop a patch of a tower without class token",
        ));
    }
    let activation = fields.text("projector_hidden_act")?.unwrap_or("gelu");
    let activation = Activation::parse(activation).ok_or_else(|| {
        fields.wrong(
            "projector_hidden_act",
            format!("is `{activation}`, which is not a known GELU"),
        )
    })?;
    let image = image(fields, family, &vision)?;
    if full && vision.kind == VisionKind::Clip && image.spatial {
        return Err(fields.wrong(
            "vision_feature_select_strategy",
            "is `full`, but the tiles of a picture are laid out by patches alone",
        ));
    }
    let default_token = match family {
        Family::OneVision => 151_646,
        Family::Llava | Family::LlavaNext => 32_000,
    };
    let image_token = match fields.token("image_token_index")? {
        Some(id) => Some(id),
        None => Some(fields.token("image_token_id")?.unwrap_or(default_token)),
    };
    Ok(ModelConfig {
        layout: Layout::Transformers,
        family,
        model_type: model_type.to_owned(),
        tower_layers: tower_layers(fields, "vision_feature_layer", select, vision.layers)?,
        keep_class: full && vision.kind == VisionKind::Clip,
        projector: ProjectorConfig {
            depth: 2,
            activation,
            bias: fields.flag("multimodal_projector_bias", true)?,
        },
        max_length: text.context,
        text,
        vision,
        tower: Tower::Inside,
        image,
        image_token,
    })
}

fn text(fields: &Fields<'_>) -> Result<TextConfig, ConfigError> {
    let empty = Map::new();
    let inner = match fields.object("text_config")? {
        Some(inner) => inner,
        None => fields.empty("text_config", &empty),
    };
    let kind = match inner.text("model_type")? {
        None | Some("llama") => TextKind::Llama,
        Some("mistral") => TextKind::Mistral,
        Some("qwen2") => TextKind::Qwen2,
        Some(other) => {
            return Err(inner.wrong(
                "model_type",
                format!("is `{other}`, but only llama, mistral and qwen2 are known"),
            ));
        }
    };
    let mut text = TextConfig::parse(&inner, kind)?;
    // Whether the head is tied is the outer model's word in transformers; a
    // sparse inner object may not repeat it.
    text.tied |= fields.flag("tie_word_embeddings", false)? && !inner.has("tie_word_embeddings");
    if text.eos.is_empty() {
        text.eos = fields.tokens("eos_token_id")?;
    }
    Ok(text)
}

/// A LLaVA without `vision_config` means CLIP-L/336, as LLaVA-1.5 was made.
fn vision(fields: &Fields<'_>) -> Result<VisionConfig, ConfigError> {
    match fields.object("vision_config")? {
        Some(inner) => VisionConfig::parse(&inner),
        None => VisionConfig::known("openai/clip-vit-large-patch14-336")
            .ok_or_else(|| fields.wrong("vision_config", "is missing")),
    }
}

fn image(
    fields: &Fields<'_>,
    family: Family,
    vision: &VisionConfig,
) -> Result<ImageConfig, ConfigError> {
    if family == Family::Llava {
        return Ok(ImageConfig::flat(Aspect::Processor));
    }
    let key = "image_grid_pinpoints";
    let default_newline = family == Family::LlavaNext;
    let pinpoints = match fields.get(key) {
        Some(value) => super::image::pinpoints(fields, key, value, vision)?,
        None if family == Family::LlavaNext => {
            vec![(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]
        }
        None => super::image::all_grids(384, 6),
    };
    // transformers lists height first.
    let pinpoints = pinpoints
        .into_iter()
        .map(|(height, width)| (width, height))
        .collect();
    let max_tiles = match fields.text("vision_aspect_ratio")? {
        _ if family == Family::LlavaNext => None,
        None => Some(9),
        Some(name) => Some(
            name.strip_prefix("anyres_max_")
                .and_then(|n| n.parse().ok())
                .ok_or_else(|| {
                    fields.wrong(
                        "vision_aspect_ratio",
                        format!("is `{name}`, but anyres_max_N is needed"),
                    )
                })?,
        ),
    };
    let newline = family == Family::OneVision
        || fields.flag("use_image_newline_parameter", default_newline)?;
    Ok(ImageConfig {
        aspect: Aspect::Anyres,
        pinpoints,
        spatial: true,
        unpad: true,
        newline,
        max_tiles,
    })
}
