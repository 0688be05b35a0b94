//! Why a checkpoint's weights cannot be used: always the file, and the tensor
//! where it is one.

use super::header::{HeaderError, Kind};
use std::path::PathBuf;

/// Why a checkpoint's weights cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(
    missing_docs,
    reason = "each variant's message says what its fields are"
)]
pub enum WeightsError {
    /// The system refused.
    #[error("failed to read {path}")]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    /// A file's header is damaged.
    #[error("{path} {source}")]
    Header { path: PathBuf, source: HeaderError },
    /// The list of shards is damaged.
    #[error("{path} {problem}")]
    Index { path: PathBuf, problem: String },
    /// A shard of the list is not there.
    #[error("{path} is missing, which should hold tensor `{tensor}`: fetch the checkpoint again")]
    Shard { path: PathBuf, tensor: String },
    /// There is nothing to load.
    #[error("{dir} holds no weights: model.safetensors or model.safetensors.index.json is needed")]
    None { dir: PathBuf },
    /// Pickles can run code when they are read.
    #[error(
        "{file} is a pickle, which is not loaded because it can hold code; convert the checkpoint first: \
         llava-worker convert {dir} --out {dir}-safetensors", dir = dir.display(), file = file.display()
    )]
    Pickle { file: PathBuf, dir: PathBuf },
    /// The configuration needs a tensor that is not there.
    #[error("{path}: tensor `{name}` is missing")]
    Missing { name: String, path: PathBuf },
    /// The configuration and the file disagree.
    #[error("{path}: tensor `{name}` has shape {have:?}, but config.json asks for {want:?}")]
    Shape {
        path: PathBuf,
        name: String,
        have: Vec<usize>,
        want: Vec<usize>,
    },
    /// A weight must be a float.
    #[error("{path}: tensor `{name}` has elements of {kind:?}, but F32, F16 or BF16 is needed")]
    Kind {
        path: PathBuf,
        name: String,
        kind: Kind,
    },
    /// A weight must be a finite number.
    #[error("{path}: tensor `{name}` holds {value} at element {index}: the weights are damaged")]
    NotFinite {
        path: PathBuf,
        name: String,
        index: usize,
        value: f32,
    },
    /// Two shards hold the same tensor.
    #[error("tensor `{name}` is in {first} and again in {second}")]
    Twice {
        name: String,
        first: PathBuf,
        second: PathBuf,
    },
    /// An adapter cannot be applied.
    #[error("{path}: {problem}")]
    Adapter { path: PathBuf, problem: String },
}
