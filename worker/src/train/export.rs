//! A finished run as a checkpoint that loaders read: transformers' layout, LLaVA's
//! own, or adapters beside their projector.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::lora::Lora;
use super::names;
use super::params::Params;
use super::settings::Settings;
use crate::config::{self, Activation, ModelConfig, VisionKind};
use crate::safetensors_file;

/// Why a model could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The file system failed.
    #[error("write model file {path}")]
    File {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// LLaVA's own layout has no token for images, which transformers' needs.
    #[error(
        "write {dir} in transformers' layout: it is in LLaVA's own and has no image token; write that one, and convert it"
    )]
    NoImageToken {
        /// The model that training started from.
        dir: PathBuf,
    },
    /// The tensors could not be written.
    #[error("write tensors {path}")]
    Tensors {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: candle_core::Error,
    },
}

/// Which names and configuration a checkpoint is written with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// transformers': `language_model.…`, nested configuration.
    Transformers,
    /// LLaVA's own: `model.…`, flat configuration, the tower in a folder of its own.
    Original,
}

impl Layout {
    /// The folder of a finished model, under the run's output.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Transformers => "model",
            Self::Original => "model-original",
        }
    }
}

/// Writes what `settings` asks for under its output: the model in each layout, and `adapter/` after
/// a stage with adapters, which the model then holds folded in.
pub(super) fn finished(
    settings: &Settings,
    config: &ModelConfig,
    params: &Params,
    lora: Option<&Lora>,
) -> Result<(), ExportError> {
    if let Some(lora) = lora {
        adapter(
            &settings.output.join("adapter"),
            settings,
            config,
            params,
            lora,
        )?;
    }
    let failed = |source| ExportError::Tensors {
        path: settings.output.clone(),
        source,
    };
    let weights = merged(params, lora).map_err(failed)?;
    let native = match config.layout {
        config::Layout::Original => Layout::Original,
        config::Layout::Transformers => Layout::Transformers,
    };
    let wanted = if settings.layouts.is_empty() {
        vec![native]
    } else {
        settings.layouts.clone()
    };
    for layout in wanted {
        let dir = settings.output.join(layout.folder());
        make(&dir)?;
        match (native, layout) {
            (from, to) if from == to => copy_configuration(&settings.model, &dir)?,
            (_, Layout::Original) => original_configuration(&settings.model, &dir, config)?,
            (_, Layout::Transformers) => {
                return Err(ExportError::NoImageToken {
                    dir: settings.model.clone(),
                });
            }
        }
        copy_tokenizer(&settings.tokenizer_path(), &dir)?;
        write(&dir, layout, config, &weights)?;
    }
    Ok(())
}

fn merged(params: &Params, lora: Option<&Lora>) -> candle_core::Result<BTreeMap<String, Tensor>> {
    let keep = |name: &str| !name.starts_with("patch_head.");
    let weights: BTreeMap<String, Tensor> = (params.iter())
        .filter(|(name, _)| keep(name))
        .map(|(name, var)| (name.to_owned(), var.as_detached_tensor()))
        .collect();
    match lora {
        Some(lora) => lora.merge(weights),
        None => Ok(weights),
    }
}

/// Writes `weights` (transformers' names, any type) in `layout`'s names and f16.
fn write(
    dir: &Path,
    layout: Layout,
    config: &ModelConfig,
    weights: &BTreeMap<String, Tensor>,
) -> Result<(), ExportError> {
    let single = config.projector.depth == 1;
    let path = dir.join("model.safetensors");
    let named = weights.iter().map(|(name, tensor)| {
        let name = match layout {
            Layout::Transformers => name.clone(),
            Layout::Original => names::original(name, single),
        };
        Ok((name, tensor.to_dtype(DType::F16)?))
    });
    let save = |named: candle_core::Result<HashMap<String, Tensor>>| {
        safetensors_file::write(named?, &path)
    };
    save(named.collect()).map_err(|source| ExportError::Tensors {
        path: path.clone(),
        source,
    })
}

/// Writes the adapters as peft reads them, and the projector beside them.
fn adapter(
    dir: &Path,
    settings: &Settings,
    config: &ModelConfig,
    params: &Params,
    lora: &Lora,
) -> Result<(), ExportError> {
    make(dir)?;
    copy_configuration(&settings.model, dir)?;
    copy_tokenizer(&settings.tokenizer_path(), dir)?;
    // The modules' names in LLaVA's code and in transformers' since 4.52. The tower has
    // products of the same last names, so they are told apart by where they stand.
    let (language, modules) = match config.layout {
        config::Layout::Original => ("model.layers.", r"model\.layers"),
        config::Layout::Transformers => (
            "model.language_model.layers.",
            r"model\.language_model\.layers",
        ),
    };
    let targets = format!(
        r"{modules}\.\d+\.(self_attn|mlp)\.({})",
        lora.targets.join("|")
    );
    let described = json!({
        "peft_type": "LORA", "task_type": null, "base_model_name_or_path": settings.model,
        "r": lora.r, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout,
        "target_modules": targets, "bias": "none", "fan_in_fan_out": false,
        "inference_mode": true, "modules_to_save": null, "use_rslora": false, "use_dora": false,
    });
    write_json(&dir.join("adapter_config.json"), &described)?;
    let single = config.projector.depth == 1;
    let (mut adapters, mut others) = (HashMap::new(), HashMap::new());
    for (name, var) in params.iter() {
        if let Some(rest) = name
            .strip_prefix("language_model.model.layers.")
            .filter(|n| n.contains(".lora_"))
        {
            adapters.insert(
                format!("base_model.model.{language}{rest}"),
                var.as_detached_tensor(),
            );
        } else if names::in_projector(name) {
            let name = match config.layout {
                config::Layout::Original => names::original(name, single),
                config::Layout::Transformers => name.to_owned(),
            };
            others.insert(name, var.as_detached_tensor());
        }
    }
    for (name, tensors) in [
        ("adapter_model.safetensors", adapters),
        ("non_lora_trainables.safetensors", others),
    ] {
        let path = dir.join(name);
        safetensors_file::write(tensors, &path)
            .map_err(|source| ExportError::Tensors { path, source })?;
    }
    Ok(())
}

/// LLaVA's own configuration beside a tower's folder, from transformers' configuration in `source`.
fn original_configuration(
    source: &Path,
    dir: &Path,
    config: &ModelConfig,
) -> Result<(), ExportError> {
    write_json(&dir.join("config.json"), &original_config(config))?;
    let tower = dir.join("vision_tower");
    make(&tower)?;
    let v = &config.vision;
    let described = json!({
        "model_type": if v.kind == VisionKind::Clip { "clip_vision_model" } else { "siglip_vision_model" },
        "hidden_size": v.hidden, "intermediate_size": v.intermediate, "num_hidden_layers": v.layers,
        "num_attention_heads": v.heads, "image_size": v.image_size, "patch_size": v.patch_size,
        "layer_norm_eps": v.norm_eps,
        "hidden_act": match v.activation {
            Activation::QuickGelu => "quick_gelu",
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu_pytorch_tanh",
        },
    });
    write_json(&tower.join("config.json"), &described)?;
    for (name, folder) in [
        ("preprocessor_config.json", &tower),
        ("generation_config.json", &dir.to_owned()),
    ] {
        let from = source.join(name);
        if from.exists() {
            copy(&from, &folder.join(name))?;
        }
    }
    Ok(())
}

fn copy_tokenizer(tokenizer: &Path, dir: &Path) -> Result<(), ExportError> {
    for name in ["tokenizer.json", "tokenizer_config.json", "tokenizer.model"] {
        let from = tokenizer.with_file_name(name);
        if from.exists() {
            copy(&from, &dir.join(name))?;
        }
    }
    Ok(())
}

fn original_config(config: &ModelConfig) -> Value {
    let t = &config.text;
    let select = config.tower_layers as i64 - config.vision.layers as i64 - 1;
    json!({
        "architectures": ["LlavaLlamaForCausalLM"], "model_type": "llava_llama",
        "hidden_size": t.hidden, "intermediate_size": t.intermediate, "num_hidden_layers": t.layers,
        "num_attention_heads": t.heads, "num_key_value_heads": t.kv_heads, "head_dim": t.head_dim,
        "vocab_size": t.vocab, "max_position_embeddings": t.context, "rms_norm_eps": t.norm_eps,
        "rope_theta": t.rope_theta, "hidden_act": "silu", "tie_word_embeddings": t.tied,
        "bos_token_id": 1, "eos_token_id": t.eos.first().copied().unwrap_or(2), "pad_token_id": 0,
        "mm_vision_tower": "vision_tower", "mm_hidden_size": config.vision.hidden,
        "mm_vision_select_layer": select,
        "mm_vision_select_feature": if config.keep_class { "cls_patch" } else { "patch" },
        "mm_projector_type": format!("mlp{}x_gelu", config.projector.depth),
        "mm_patch_merge_type": "flat", "image_aspect_ratio": "pad", "mm_use_im_start_end": false,
        "mm_use_im_patch_token": false, "use_mm_proj": true, "unfreeze_mm_vision_tower": true,
        "tokenizer_padding_side": "right", "tokenizer_model_max_length": config.max_length,
        "torch_dtype": "float16",
    })
}

/// Copies every small configuration file: what is not weights and not a folder.
fn copy_configuration(from: &Path, to: &Path) -> Result<(), ExportError> {
    let failed = |source| ExportError::File {
        path: from.to_owned(),
        source,
    };
    for entry in std::fs::read_dir(from).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let json = path
            .extension()
            .is_some_and(|e| e == "json" || e == "jinja");
        let index = path.to_str().is_some_and(|p| p.ends_with(".index.json"));
        if let (true, false, Some(name)) = (json, index, path.file_name()) {
            copy(&path, &to.join(name))?;
        }
    }
    Ok(())
}

fn make(dir: &Path) -> Result<(), ExportError> {
    std::fs::create_dir_all(dir).map_err(|source| ExportError::File {
        path: dir.to_owned(),
        source,
    })
}

fn copy(from: &Path, to: &Path) -> Result<(), ExportError> {
    match std::fs::copy(from, to) {
        Ok(_) => Ok(()),
        Err(source) => Err(ExportError::File {
            path: to.to_owned(),
            source,
        }),
    }
}

fn write_json(path: &Path, value: &Value) -> Result<(), ExportError> {
    let text = format!("{value:#}\n");
    std::fs::write(path, text).map_err(|source| ExportError::File {
        path: path.to_owned(),
        source,
    })
}
