//! Writing safetensors files that others can read: transformers, which wants to
//! know which framework's conventions they follow, and users other than the writer.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::Path;

use candle_core::{Result, Tensor};

/// Writes `tensors` to `path`, with the permissions that any new file there has.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write(
    tensors: impl IntoIterator<Item = (String, Tensor)>,
    path: &Path,
) -> Result<()> {
    // The library writes through a temporary file that its owner alone may read.
    let usual = File::create(path)?.metadata()?.permissions();
    let info = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(tensors, Some(info), path)?;
    Ok(fs::set_permissions(path, usual)?)
}
