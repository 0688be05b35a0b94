//! Reading a checkpoint's JSON files: bounded, and with errors that name the file.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// Longest JSON file read, in bytes; a tokenizer of 250,000 entries takes 20 MB.
const LONGEST: u64 = 64 << 20;

/// A JSON file that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum JsonFileError {
    /// The file system says no.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is longer than any such file has reason to be.
    #[error("read {}: longer than {LONGEST} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
    },
    /// The text is not what was expected.
    #[error("parse {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        source: serde_json::Error,
    },
}

impl JsonFileError {
    /// Whether the file is not there at all.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::Read { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Reads and parses a JSON file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, JsonFileError> {
    let bytes = read_bounded(path).map_err(|source| JsonFileError::Read {
        path: path.to_owned(),
        source,
    })?;
    if bytes.len() as u64 > LONGEST {
        return Err(JsonFileError::TooLong {
            path: path.to_owned(),
        });
    }
    serde_json::from_slice(&bytes).map_err(|source| JsonFileError::Parse {
        path: path.to_owned(),
        source,
    })
}

/// Reads and parses a JSON file, or says that there is none.
pub(crate) fn read_json_if_there<T: DeserializeOwned>(
    path: &Path,
) -> Result<Option<T>, JsonFileError> {
    match read_json(path) {
        Ok(value) => Ok(Some(value)),
        Err(JsonFileError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Reads a whole file within the same bound, or says that there is none.
pub(crate) fn read_bytes(path: &Path) -> Result<Option<Vec<u8>>, JsonFileError> {
    match read_bounded(path) {
        Ok(bytes) if bytes.len() as u64 > LONGEST => Err(JsonFileError::TooLong {
            path: path.to_owned(),
        }),
        Ok(bytes) => Ok(Some(bytes)),
        Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(JsonFileError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(LONGEST + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}
