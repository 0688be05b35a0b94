//! Checkpoint folders with nothing but their JSON files.

use std::path::Path;

use llava_worker::config::ModelConfig;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A folder whose `config.json` is `config`.
pub(crate) fn folder(config: &Value) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

/// The checked configuration of the checkpoint in `dir`.
pub(crate) fn model(dir: &Path) -> ModelConfig {
    ModelConfig::read(dir, None).unwrap()
}

/// `config.json` in transformers' layout around a tower of the given sides.
pub(crate) fn transformers(model_type: &str, tower: &str, side: u32, patch: u32) -> Value {
    let strategy = if tower == "siglip_vision_model" {
        "full"
    } else {
        "default"
    };
    json!({
        "model_type": model_type,
        "text_config": { "model_type": "llama" },
        "vision_config": { "model_type": tower, "image_size": side, "patch_size": patch },
        "vision_feature_select_strategy": strategy,
    })
}

/// `config.json` in LLaVA's own layout, the tower described inside.
pub(crate) fn original(side: u32, patch: u32) -> Value {
    json!({
        "model_type": "llava_llama",
        "mm_vision_tower": "a-tower-that-is-nowhere",
        "mm_projector_type": "mlp2x_gelu",
        "vision_config": { "model_type": "clip_vision_model", "image_size": side, "patch_size": patch },
    })
}
