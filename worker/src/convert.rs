//! Rewrites a checkpoint's pickled weights as safetensors. The pickle is read by an
//! interpreter that knows the few objects of which PyTorch's tensors are made;
//! all others are left out, so nothing in it can run.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use candle_core::pickle::PthTensors;
use serde_json::json;

/// Why a checkpoint was not converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The target is there already.
    #[error("convert to {}: it exists already; choose another folder or remove it", path.display())]
    Exists {
        /// The target.
        path: PathBuf,
    },
    /// There is nothing to convert.
    #[error("convert {}: it holds no pickled weights (*.bin)", dir.display())]
    Nothing {
        /// The checkpoint.
        dir: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("convert: {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A pickle is damaged, or holds something else than tensors.
    #[error("read tensors from {}", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// Why.
        source: candle_core::Error,
    },
    /// The tensors cannot be written.
    #[error("write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: safetensors::SafeTensorError,
    },
}

/// Converts the checkpoint in `dir` to a new folder `out`, which appears only when
/// it is whole. `on_file` hears of each weights file before it is converted.
///
/// # Errors
/// `out` exists, `dir` holds no pickled weights, or one of them cannot be converted.
pub fn pickles_to_safetensors(
    dir: &Path,
    out: &Path,
    on_file: &dyn Fn(&Path),
) -> Result<(), ConvertError> {
    if out.exists() {
        return Err(ConvertError::Exists {
            path: out.to_owned(),
        });
    }
    let mut pickles = Vec::new();
    let mut others = Vec::new();
    for entry in fs::read_dir(dir).map_err(file_error(dir))? {
        let path = entry.map_err(file_error(dir))?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.ends_with(".bin") && name != "training_args.bin" {
            pickles.push(path);
        } else if path.is_file() && !name.ends_with(".bin") && !name.ends_with(".bin.index.json") {
            others.push(path);
        }
    }
    if pickles.is_empty() {
        return Err(ConvertError::Nothing {
            dir: dir.to_owned(),
        });
    }
    pickles.sort();
    let parent = out
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let building = tempfile::Builder::new()
        .prefix(".converting-")
        .tempdir_in(parent)
        .map_err(file_error(parent))?;
    for path in others {
        let to = building.path().join(path.file_name().unwrap_or_default());
        fs::copy(&path, &to).map_err(file_error(&path))?;
    }
    let mut weights = BTreeMap::new();
    let mut bytes = 0;
    for path in &pickles {
        on_file(path);
        let name = target_name(path);
        let tensors = tensors(path)?;
        if name.starts_with("model") {
            bytes += tensors
                .values()
                .map(|tensor| tensor.elem_count() * tensor.dtype().size_in_bytes())
                .sum::<usize>();
            weights.extend(tensors.keys().map(|tensor| (tensor.clone(), name.clone())));
        }
        let to = building.path().join(&name);
        // transformers reads only files that say which framework wrote them.
        let info = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        safetensors::serialize_to_file(tensors, Some(info), &to).map_err(|source| {
            ConvertError::Write {
                path: to.clone(),
                source,
            }
        })?;
    }
    if weights.values().any(|name| name != "model.safetensors") {
        let index = json!({ "metadata": { "total_size": bytes }, "weight_map": weights });
        let to = building.path().join("model.safetensors.index.json");
        fs::write(&to, format!("{index:#}\n")).map_err(file_error(&to))?;
    }
    let building = building.keep();
    fs::rename(&building, out).map_err(file_error(out))
}

fn tensors(path: &Path) -> Result<BTreeMap<String, Tensor>, ConvertError> {
    let pickle = |source| ConvertError::Pickle {
        path: path.to_owned(),
        source,
    };
    let file = PthTensors::new(path, None).map_err(pickle)?;
    let mut tensors = BTreeMap::new();
    for name in file.tensor_infos().keys() {
        if let Some(tensor) = file
            .get(name)
            .and_then(|tensor| tensor.map(|tensor| tensor.contiguous()).transpose())
            .map_err(pickle)?
        {
            tensors.insert(name.clone(), tensor);
        }
    }
    Ok(tensors)
}

/// `pytorch_model-00001-of-00002.bin` becomes `model-00001-of-00002.safetensors`.
fn target_name(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    format!(
        "{}.safetensors",
        stem.strip_prefix("pytorch_").unwrap_or(&stem)
    )
}

fn file_error(path: &Path) -> impl Fn(io::Error) -> ConvertError {
    let path = path.to_owned();
    move |source| ConvertError::File {
        path: path.clone(),
        source,
    }
}
