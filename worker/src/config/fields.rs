//! Reading `config.json` field by field: every getter checks the type and a
//! sane range, so that a config that lies is refused here with the field's
//! name, before any memory is sized by it.

use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Why a `config.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be opened or read.
    #[error("failed to read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not a JSON object.
    #[error("{path} is not a JSON object")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What the parser said, with line and column.
        source: serde_json::Error,
    },
    /// A field has a value that no model of these families can have.
    #[error("{path}: field `{field}` {problem}")]
    Field {
        /// The file.
        path: PathBuf,
        /// The field with its parents, separated by dots.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// The largest count that any field may have: larger sizes are damage.
const MAX_COUNT: u64 = 1 << 24;

/// Reads a JSON object from `path`, of at most 16 MiB.
pub fn read_object(path: &Path) -> Result<Map<String, Value>, ConfigError> {
    let read = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let length = std::fs::metadata(path).map_err(read)?.len();
    if length > 16 << 20 {
        return Err(read(std::io::Error::other(format!(
            "{length} bytes are more than a JSON configuration has (16 MiB)"
        ))));
    }
    let text = std::fs::read(path).map_err(read)?;
    serde_json::from_slice(&text).map_err(|source| ConfigError::Parse {
        path: path.to_owned(),
        source,
    })
}

/// One JSON object inside a configuration file, with its place for messages.
#[derive(Clone, Copy)]
pub struct Fields<'a> {
    path: &'a Path,
    parent: &'a str,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    /// The top object of the file at `path`.
    pub fn new(path: &'a Path, map: &'a Map<String, Value>) -> Self {
        Self {
            path,
            parent: "",
            map,
        }
    }

    /// The object under `key`, if there is one.
    pub fn object(&self, key: &'a str) -> Result<Option<Fields<'a>>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields {
                path: self.path,
                parent: key,
                map,
            })),
            Some(other) => Err(self.wrong(key, format!("is {other}, but an object is needed"))),
        }
    }

    /// An object without fields that stands for the missing `key`.
    pub(super) fn empty(&self, key: &'a str, map: &'a Map<String, Value>) -> Fields<'a> {
        Fields {
            path: self.path,
            parent: key,
            map,
        }
    }

    /// The value under `key`; JSON's `null` counts as absent.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Whether the object has no field at all.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Whether the field is written at all, be it as `null`.
    pub fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// A whole number from 1 to 2^24, or `default` where the field is absent.
    pub fn count(&self, key: &str, default: usize) -> Result<usize, ConfigError> {
        Ok(self.optional_count(key)?.unwrap_or(default))
    }

    /// A whole number from 1 to 2^24, if the field is there.
    pub fn optional_count(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        match value.as_u64() {
            Some(n @ 1..=MAX_COUNT) => Ok(Some(n as usize)),
            _ => Err(self.wrong(
                key,
                format!("is {value}, but a whole number from 1 to {MAX_COUNT} is needed"),
            )),
        }
    }

    /// A positive finite number, or `default` where the field is absent.
    pub fn positive(&self, key: &str, default: f64) -> Result<f64, ConfigError> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        match value.as_f64() {
            Some(x) if x > 0.0 && x.is_finite() => Ok(x),
            _ => Err(self.wrong(key, format!("is {value}, but a number above 0 is needed"))),
        }
    }

    /// True or false, or `default` where the field is absent.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.wrong(key, format!("is {other}, but true or false is needed"))),
        }
    }

    /// A string, if the field is there.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, format!("is {other}, but a string is needed"))),
        }
    }

    /// A signed whole number, or `default` where the field is absent.
    pub fn integer(&self, key: &str, default: i64) -> Result<i64, ConfigError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_i64().ok_or_else(|| {
                self.wrong(key, format!("is {value}, but a whole number is needed"))
            }),
        }
    }

    /// A token id, if the field is there and not negative (`-200` and the
    /// like mean "none" in the original layout).
    pub fn token(&self, key: &str) -> Result<Option<u32>, ConfigError> {
        Ok(u32::try_from(self.integer(key, -1)?).ok())
    }

    /// A token id or a list of them; empty where the field is absent.
    pub fn tokens(&self, key: &str) -> Result<Vec<u32>, ConfigError> {
        match self.get(key) {
            Some(Value::Array(list)) => list
                .iter()
                .map(|value| {
                    value
                        .as_u64()
                        .and_then(|id| u32::try_from(id).ok())
                        .ok_or_else(|| {
                            self.wrong(key, format!("has {value}, which is not a token id"))
                        })
                })
                .collect(),
            _ => Ok(self.token(key)?.into_iter().collect()),
        }
    }

    /// The error that `key` has `problem`.
    pub fn wrong(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        let field = if self.parent.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.parent)
        };
        ConfigError::Field {
            path: self.path.to_owned(),
            field,
            problem: problem.into(),
        }
    }
}
