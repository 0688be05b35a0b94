//! LLaVA's own `config.json`: the language model's fields flat at the top,
//! `mm_*` fields for everything else, and a vision tower that is only named.

use super::image::{Aspect, ImageConfig};
use super::{
    Activation, ConfigError, Family, Fields, Layout, ModelConfig, ProjectorConfig, TextConfig,
    TextKind, Tower, VisionConfig, VisionKind, read_object, tower_layers,
};
use std::path::{Path, PathBuf};

pub(super) fn parse(
    fields: &Fields<'_>,
    dir: &Path,
    tower: Option<&Path>,
) -> Result<ModelConfig, ConfigError> {
    let model_type = fields.text("model_type")?.unwrap_or("llava_llama");
    let kind = match model_type {
        "llava" | "llava_llama" => TextKind::Llama,
        "llava_mistral" => TextKind::Mistral,
        "llava_qwen" => TextKind::Qwen2,
        other => {
            return Err(fields.wrong(
                "model_type",
                format!("is `{other}`, but only llava, llava_llama, llava_mistral and llava_qwen are known"),
            ));
        }
    };
    let text = TextConfig::parse(fields, kind)?;
    let (vision, tower) = vision(fields, dir, tower)?;
    let (tower_layers, keep_class) = match vision.kind {
        VisionKind::Clip => {
            let select = fields.integer("mm_vision_select_layer", -2)?;
            let keep = match fields.text("mm_vision_select_feature")?.unwrap_or("patch") {
                "patch" => false,
                "cls_patch" => true,
                other => {
                    return Err(fields.wrong(
                        "mm_vision_select_feature",
                        format!("is `{other}`, but only `patch` and `cls_patch` are known"),
                    ));
                }
            };
            (
                tower_layers(fields, "mm_vision_select_layer", select, vision.layers)?,
                keep,
            )
        }
        // LLaVA-NeXT deletes SigLIP's last layer and takes what then comes out,
        // whatever the select fields say.
        VisionKind::Siglip => (vision.layers - 1, false),
    };
    if fields.flag("s2", false)? {
        return Err(fields.wrong("s2", "is true, but multi-scale towers are not supported"));
    }
    let image = image(fields, &vision)?;
    if keep_class && image.spatial {
        return Err(fields.wrong(
            "mm_vision_select_feature",
            "is `cls_patch`, but the tiles of a picture are laid out by patches alone",
        ));
    }
    let family = match (image.spatial, image.max_tiles) {
        (true, Some(_)) => Family::OneVision,
        (true, None) => Family::LlavaNext,
        (false, _) => Family::Llava,
    };
    let max_length = fields
        .count("tokenizer_model_max_length", text.context)?
        .min(text.context);
    Ok(ModelConfig {
        layout: Layout::Original,
        family,
        model_type: model_type.to_owned(),
        text,
        vision,
        tower,
        tower_layers,
        keep_class,
        projector: projector(fields)?,
        image,
        image_token: None,
        max_length,
    })
}

/// The tower's configuration, and where its weights may be: the folder that
/// was asked for, a folder of the name that the checkpoint gives (beside its
/// files, or beside the checkpoint), or inside the checkpoint.
fn vision(
    fields: &Fields<'_>,
    dir: &Path,
    asked: Option<&Path>,
) -> Result<(VisionConfig, Tower), ConfigError> {
    let key = "mm_vision_tower";
    let name = match fields.text(key)? {
        Some(name) => name,
        None => fields
            .text("vision_tower")?
            .ok_or_else(|| fields.wrong(key, "is missing: this is not a LLaVA checkpoint"))?,
    };
    let folder = match asked {
        Some(folder) => Some(folder.to_owned()),
        None => folders(dir, name)
            .into_iter()
            .find(|folder| folder.join("config.json").is_file()),
    };
    if let Some(folder) = folder {
        let path = folder.join("config.json");
        let object = read_object(&path)?;
        let vision = VisionConfig::parse(&Fields::new(&path, &object))?;
        return Ok((vision, Tower::Folder(folder)));
    }
    if let Some(inner) = fields.object("vision_config")? {
        return Ok((VisionConfig::parse(&inner)?, Tower::Inside));
    }
    match VisionConfig::known(name) {
        Some(vision) => Ok((vision, Tower::Named(name.to_owned()))),
        None => Err(fields.wrong(
            key,
            format!(
                "is `{name}`, which is neither a folder beside the checkpoint nor a tower known by name; \
                 name the tower's folder with --vision-tower"
            ),
        )),
    }
}

fn folders(dir: &Path, name: &str) -> Vec<PathBuf> {
    let last = Path::new(name).file_name().map(PathBuf::from);
    let mut folders = vec![dir.join(name)];
    if let Some(last) = last {
        folders.push(dir.join(&last));
        if let Some(parent) = dir.parent() {
            folders.push(parent.join(&last));
        }
    }
    folders
}

fn projector(fields: &Fields<'_>) -> Result<ProjectorConfig, ConfigError> {
    let key = "mm_projector_type";
    let name = fields.text(key)?.unwrap_or("linear");
    let depth = match name {
        "linear" => 1,
        "identity" => 0,
        _ => name
            .strip_prefix("mlp")
            .and_then(|rest| rest.strip_suffix("x_gelu"))
            .and_then(|depth| depth.parse().ok())
            .filter(|depth| (1..=16).contains(depth))
            .ok_or_else(|| {
                fields.wrong(
                    key,
                    format!("is `{name}`, but only linear, mlpNx_gelu and identity are known"),
                )
            })?,
    };
    Ok(ProjectorConfig {
        depth,
        activation: Activation::Gelu,
        bias: true,
    })
}

fn image(fields: &Fields<'_>, vision: &VisionConfig) -> Result<ImageConfig, ConfigError> {
    let ratio = fields.text("image_aspect_ratio")?.unwrap_or("square");
    let merge = fields.text("mm_patch_merge_type")?.unwrap_or("flat");
    let aspect = match ratio {
        "pad" => Aspect::Pad,
        _ if ratio == "anyres" || ratio.starts_with("anyres_max_") => Aspect::Anyres,
        "highres" | "crop_split" => {
            return Err(fields.wrong(
                "image_aspect_ratio",
                format!("is `{ratio}`, which is not supported"),
            ));
        }
        _ => Aspect::Processor,
    };
    let (spatial, unpad) = match merge {
        "flat" => (false, false),
        "spatial" => (true, false),
        "spatial_unpad" => (true, true),
        other => {
            return Err(fields.wrong(
                "mm_patch_merge_type",
                format!("is `{other}`, but only flat, spatial and spatial_unpad are known"),
            ));
        }
    };
    if aspect != Aspect::Anyres {
        return Ok(ImageConfig {
            spatial,
            ..ImageConfig::flat(aspect)
        });
    }
    let key = "image_grid_pinpoints";
    let value = fields
        .get(key)
        .ok_or_else(|| fields.wrong(key, "is missing, but image_aspect_ratio is anyres"))?;
    let max_tiles = match ratio.strip_prefix("anyres_max_") {
        None => None,
        Some(n) => Some(n.parse().map_err(|_| {
            fields.wrong(
                "image_aspect_ratio",
                format!("is `{ratio}`, but anyres_max_N needs a number"),
            )
        })?),
    };
    Ok(ImageConfig {
        aspect,
        pinpoints: super::image::pinpoints(fields, key, value, vision)?,
        spatial,
        unpad,
        newline: unpad,
        max_tiles,
    })
}
