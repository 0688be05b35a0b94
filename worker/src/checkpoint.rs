//! Puts a checkpoint together from its folders: the language model with its
//! projector, the vision tower where that lies apart, and what LLaVA's LoRA
//! and projector-only checkpoints lay over a base.

use crate::config::{ModelConfig, Tower};
use crate::model::{LoadError, LoadOptions};
use crate::weights::{Adapter, Weights, WeightsError};
use std::path::Path;

/// Opens the checkpoint in `dir`: its configuration and its tensors.
///
/// # Errors
/// Names the file, and the field or tensor, that cannot be used.
pub fn open(dir: &Path, options: &LoadOptions) -> Result<(ModelConfig, Weights), LoadError> {
    let config = ModelConfig::read(dir, options.vision_tower.as_deref())?;
    let adapter = dir.join("adapter_config.json").is_file();
    let overlays = ["non_lora_trainables", "mm_projector"];
    let own = Weights::open(dir);
    let mut weights = match (
        own,
        overlays
            .iter()
            .find_map(|stem| overlay(dir, stem).transpose()),
    ) {
        (Ok(weights), _) if !adapter => weights,
        (_, Some(path)) => {
            let path = path?;
            let what = if adapter {
                "a LoRA adapter"
            } else {
                "a projector"
            };
            let mut weights = base(dir, options, what)?;
            weights.lay_over(&path)?;
            weights
        }
        (_, None) if adapter => base(dir, options, "a LoRA adapter")?,
        (Err(error), None) => return Err(error.into()),
        (Ok(weights), None) => weights,
    };
    // A tower inside the checkpoint was tuned with it and goes first.
    if !weights.has("vision.embeddings.position_embedding.weight") {
        match &config.tower {
            Tower::Folder(folder) => weights.add_tower(folder)?,
            Tower::Named(name) => {
                return Err(LoadError::NeedsTower {
                    dir: dir.to_owned(),
                    name: name.clone(),
                });
            }
            Tower::Inside => {}
        }
    }
    if adapter {
        weights.set_adapter(Adapter::open(dir)?)?;
    }
    Ok((config, weights))
}

fn base(dir: &Path, options: &LoadOptions, what: &'static str) -> Result<Weights, LoadError> {
    let Some(base) = &options.base else {
        return Err(LoadError::NeedsBase {
            dir: dir.to_owned(),
            what,
        });
    };
    Ok(Weights::open(base)?)
}

/// The file `stem.safetensors` in `dir`, if it is there; its pickled form is
/// refused.
fn overlay(dir: &Path, stem: &str) -> Result<Option<std::path::PathBuf>, WeightsError> {
    let path = dir.join(format!("{stem}.safetensors"));
    if path.is_file() {
        return Ok(Some(path));
    }
    let pickle = dir.join(format!("{stem}.bin"));
    if pickle.is_file() {
        return Err(WeightsError::Pickle {
            file: pickle,
            dir: dir.to_owned(),
        });
    }
    Ok(None)
}
