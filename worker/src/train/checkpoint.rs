//! Where a run stands, on disk: weights, the optimiser's memory and the step, written
//! beside the last one and renamed into place, so that a crash at any moment leaves
//! a whole checkpoint.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor, safetensors};
use serde::{Deserialize, Serialize};

use super::optim::{AdamState, Moments};
use super::params::Params;
use crate::safetensors_file;

/// How far a run has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The stage under way, from 0.
    pub stage: usize,
    /// Steps of it that are done.
    pub step: usize,
    /// The optimiser's updates in it.
    pub updates: u64,
    /// Records left out so far.
    pub skipped: usize,
    /// Steps done since the run began.
    pub total: usize,
}

/// Why a checkpoint could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file system failed.
    #[error("checkpoint {path}")]
    File {
        /// Which file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The tensors could not be written or read.
    #[error("tensors of checkpoint {path}")]
    Tensors {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: candle_core::Error,
    },
    /// The progress file is no progress file.
    #[error("parse {path}")]
    Progress {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

/// Checkpoints kept: the last and, in case it was damaged by the disk, the one before.
const KEPT: usize = 2;

/// Writes a checkpoint under `output` and removes older ones.
///
/// # Errors
/// Names the file that could not be written.
pub fn save(
    output: &Path,
    progress: Progress,
    params: &Params,
    adam: &AdamState,
) -> Result<(), CheckpointError> {
    let partial = output.join("checkpoint.partial");
    let file = |path: &Path| {
        let path = path.to_owned();
        move |source| CheckpointError::File { path, source }
    };
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(file(&partial))?;
    }
    fs::create_dir_all(&partial).map_err(file(&partial))?;
    let weights: HashMap<String, Tensor> = params
        .iter()
        .map(|(name, var)| (name.to_owned(), var.as_tensor().clone()))
        .collect();
    let moments: HashMap<String, Tensor> = (adam.moments.iter())
        .flat_map(|(name, m)| {
            [
                (format!("mean.{name}"), m.mean.clone()),
                (format!("square.{name}"), m.square.clone()),
            ]
        })
        .collect();
    for (name, tensors) in [
        ("weights.safetensors", weights),
        ("optimizer.safetensors", moments),
    ] {
        let path = partial.join(name);
        safetensors_file::write(tensors, &path).map_err(|source| CheckpointError::Tensors {
            path: path.clone(),
            source,
        })?;
        let written = fs::File::open(&path).map_err(file(&path))?;
        written.sync_all().map_err(file(&path))?;
    }
    let path = partial.join("progress.json");
    let text =
        serde_json::to_string_pretty(&progress).map_err(|source| CheckpointError::Progress {
            path: path.clone(),
            source,
        })?;
    fs::write(&path, text).map_err(file(&path))?;
    let place = output.join(format!("checkpoint-{:06}", progress.total));
    if place.exists() {
        fs::remove_dir_all(&place).map_err(file(&place))?;
    }
    fs::rename(&partial, &place).map_err(file(&place))?;
    let all = found(output);
    for old in &all[..all.len().saturating_sub(KEPT)] {
        fs::remove_dir_all(old).map_err(file(old))?;
    }
    Ok(())
}

/// The newest checkpoint under `output`, if there is one.
///
/// # Errors
/// Names the file that could not be read.
pub fn load(
    output: &Path,
    device: &Device,
) -> Result<Option<(Progress, Params, AdamState)>, CheckpointError> {
    let Some(place) = found(output).pop() else {
        return Ok(None);
    };
    let path = place.join("progress.json");
    let text = fs::read(&path).map_err(|source| CheckpointError::File {
        path: path.clone(),
        source,
    })?;
    let progress: Progress = serde_json::from_slice(&text)
        .map_err(|source| CheckpointError::Progress { path, source })?;
    let tensors = |name: &str| {
        let path = place.join(name);
        safetensors::load(&path, device).map_err(|source| CheckpointError::Tensors { path, source })
    };
    let mut params = Params::default();
    for (name, tensor) in tensors("weights.safetensors")? {
        params
            .set(&name, &tensor)
            .map_err(|source| CheckpointError::Tensors {
                path: place.clone(),
                source,
            })?;
    }
    let mut adam = AdamState {
        updates: progress.updates,
        ..AdamState::default()
    };
    let mut moments = tensors("optimizer.safetensors")?;
    let names: Vec<String> = moments
        .keys()
        .filter_map(|name| name.strip_prefix("mean.").map(str::to_owned))
        .collect();
    for name in names {
        let mean = moments.remove(&format!("mean.{name}"));
        let square = moments.remove(&format!("square.{name}"));
        if let (Some(mean), Some(square)) = (mean, square) {
            adam.moments.insert(name, Moments { mean, square });
        }
    }
    Ok(Some((progress, params, adam)))
}

/// Whole checkpoints under `output`, oldest first.
fn found(output: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(output).map(|all| all.flatten().map(|e| e.path()).collect());
    let mut all: Vec<PathBuf> = entries.unwrap_or_default();
    all.retain(|path| {
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        name.strip_prefix("checkpoint-")
            .is_some_and(|step| step.parse::<usize>().is_ok())
    });
    all.sort();
    all
}
