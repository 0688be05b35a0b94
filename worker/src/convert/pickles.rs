//! `*.bin` to safetensors, file by file: whatever a file of `torch.save` holds beside
//! tensors is left out and told.

use std::path::{Path, PathBuf};

use super::folder::{Folder, Index, Meter, Tensor, bytes};
use super::torch::TorchFile;
use super::{ConvertError, Progress, files, holds_weights};

/// What of a file was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// The file.
    pub file: PathBuf,
    /// Name and nature of what is no tensor.
    pub what: String,
}

pub(super) fn convert(
    dir: &Path,
    out: &Path,
    hear: &dyn Fn(&Progress),
) -> Result<Vec<Skipped>, ConvertError> {
    let to = Folder::begin(out)?;
    let (mut opened, mut skipped) = (Vec::new(), Vec::new());
    let mut indices = Vec::new();
    for (name, path) in files(dir)? {
        if name.ends_with(".safetensors.index.json") {
            indices.push((name, path));
        } else if !name.ends_with(".bin") {
            if !holds_weights(&name) || name.ends_with(".safetensors") {
                to.copy(&path, &name)?;
            }
        } else if name != "training_args.bin" {
            let file = TorchFile::open(&path)?;
            skipped.extend(file.skipped.iter().map(|what| Skipped {
                file: path.clone(),
                what: what.clone(),
            }));
            opened.push((target_name(&name), file));
        }
    }
    if opened.is_empty() {
        return Err(ConvertError::Nothing {
            dir: dir.to_owned(),
        });
    }
    let all: Vec<(&str, Vec<Tensor<'_>>)> = (opened.iter())
        .map(|(name, file)| (name.as_str(), tensors(file)))
        .collect();
    let total = all.iter().map(|(_, tensors)| bytes(tensors)).sum();
    let meter = Meter::new(total, hear);
    let is_model = |name: &str| name.starts_with("model");
    if !all.iter().any(|(name, _)| is_model(name)) {
        // The model's own files stay as they are, and so does what lists them.
        for (name, path) in &indices {
            to.copy(path, name)?;
        }
    }
    let mut index = Index::default();
    let mut sharded = false;
    for (name, tensors) in &all {
        to.tensors(name, tensors, &meter)?;
        if is_model(name) {
            index.add(name, tensors);
            sharded |= *name != "model.safetensors";
        }
    }
    if sharded {
        index.write(&to, "")?;
    }
    to.finish()?;
    Ok(skipped)
}

fn tensors(file: &TorchFile) -> Vec<Tensor<'_>> {
    (file.tensors.iter())
        .map(|tensor| Tensor {
            name: tensor.name.clone(),
            kind: tensor.kind,
            shape: tensor.shape.clone(),
            data: Box::new(move || Ok(file.data(tensor))),
        })
        .collect()
}

/// `pytorch_model-00001-of-00002.bin` becomes `model-00001-of-00002.safetensors`.
fn target_name(name: &str) -> String {
    let stem = name.strip_suffix(".bin").unwrap_or(name);
    let stem = stem.strip_prefix("pytorch_").unwrap_or(stem);
    format!("{stem}.safetensors")
}
