//! Checkpoints in another form: pickled weights as safetensors, one layout as the
//! other, an adapter or projector merged into its base, one element type as another,
//! and LLaVA's deltas. What is written appears in one step and never over anything.

mod checkpoint;
mod configuration;
mod delta;
mod folder;
mod pickle;
mod pickles;
mod tokenizer;
mod torch;

use std::io;
use std::path::{Path, PathBuf};

pub use checkpoint::{Layout, Target};
pub use pickles::Skipped;

use crate::json_file::JsonFileError;
use crate::model::LoadError;
use crate::tokenize::TokenizerError;
use crate::weights::{Kind, WeightsError};

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
    #[error(
        "convert {}: it holds no pickled weights (*.bin); say with --layout, --dtype or --base what to make of it",
        dir.display()
    )]
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
    #[error("read tensors from {}: {problem}", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The tensors cannot be written.
    #[error("write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: safetensors::SafeTensorError,
    },
    /// A checkpoint cannot be opened.
    #[error(transparent)]
    Open(#[from] LoadError),
    /// Weights cannot be used.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A tokenizer cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A JSON file cannot be used.
    #[error(transparent)]
    Json(#[from] JsonFileError),
    /// The wanted layout has no words for this checkpoint.
    #[error("convert {}: it {problem}", dir.display())]
    Inexpressible {
        /// The checkpoint.
        dir: PathBuf,
        /// What cannot be said.
        problem: String,
    },
    /// A delta and a base do not belong together.
    #[error("combine {} with {}: {problem}", first.display(), second.display())]
    Apart {
        /// Delta or target.
        first: PathBuf,
        /// Base.
        second: PathBuf,
        /// What does not fit.
        problem: String,
    },
}

/// How far a conversion is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The file that is being written.
    pub file: String,
    /// Bytes of tensors written.
    pub done: usize,
    /// Bytes of tensors in all.
    pub total: usize,
}

/// Rewrites the pickled weights in `dir`, file by file; gives what was left out.
///
/// # Errors
/// `out` exists, `dir` holds no pickled weights, or one of them cannot be converted.
pub fn pickles_to_safetensors(
    dir: &Path,
    out: &Path,
    hear: &dyn Fn(&Progress),
) -> Result<Vec<Skipped>, ConvertError> {
    pickles::convert(dir, out, hear)
}

/// Writes the checkpoint in `dir` as `target` says, whole: with its vision tower, and
/// with an adapter or projector merged into its base. Gives the names of the tensors
/// that were left out.
///
/// # Errors
/// `out` exists, the checkpoint cannot be opened, or the layout has no words for it.
pub fn checkpoint(
    dir: &Path,
    out: &Path,
    target: &Target,
    hear: &dyn Fn(&Progress),
) -> Result<Vec<String>, ConvertError> {
    checkpoint::convert(dir, out, target, hear)
}

/// Adds `base` to the delta in `dir`: LLaVA's `apply_delta`.
///
/// # Errors
/// `out` exists, or the two do not fit each other.
pub fn apply_delta(
    dir: &Path,
    base: &Path,
    out: &Path,
    hear: &dyn Fn(&Progress),
) -> Result<(), ConvertError> {
    delta::combine(dir, base, out, |x, base| x + base, hear)
}

/// Takes `base` from the checkpoint in `dir`: LLaVA's `make_delta`.
///
/// # Errors
/// `out` exists, or the two do not fit each other.
pub fn make_delta(
    dir: &Path,
    base: &Path,
    out: &Path,
    hear: &dyn Fn(&Progress),
) -> Result<(), ConvertError> {
    delta::combine(dir, base, out, |x, base| x - base, hear)
}

fn file_error(path: &Path) -> impl Fn(io::Error) -> ConvertError {
    let path = path.to_owned();
    move |source| ConvertError::File {
        path: path.clone(),
        source,
    }
}

/// The elements of `values` as `kind`, rounded to the nearest.
fn narrowed(values: &[f32], kind: Kind) -> Vec<u8> {
    fn all<const N: usize>(values: &[f32], one: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
        values.iter().flat_map(|x| one(*x)).collect()
    }
    match kind {
        Kind::F16 => all(values, |x| half::f16::from_f32(x).to_le_bytes()),
        Kind::BF16 => all(values, |x| half::bf16::from_f32(x).to_le_bytes()),
        Kind::F64 => all(values, |x| f64::from(x).to_le_bytes()),
        _ => all(values, f32::to_le_bytes),
    }
}

/// Files of a checkpoint that hold weights, and lists of such files.
fn holds_weights(name: &str) -> bool {
    let ends = [".safetensors", ".bin", ".pt", ".pth", ".index.json"];
    ends.iter().any(|end| name.ends_with(end))
}

/// The plain files of a folder by name, in order.
fn files(dir: &Path) -> Result<Vec<(String, PathBuf)>, ConvertError> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(file_error(dir))? {
        let path = entry.map_err(file_error(dir))?.path();
        let name = path.file_name().unwrap_or_default();
        if path.is_file() {
            files.push((name.to_string_lossy().into_owned(), path));
        }
    }
    files.sort();
    Ok(files)
}
