//! API keys from a file that may change while the router runs. The file holds
//! hashes, so that reading it gives no key away, and the comparison takes the
//! same time whatever is sent.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use sha2::{Digest as _, Sha256};

use crate::metrics::meter::Count;

/// Between two looks at the file: Secrets mounted as volumes change by a swap of
/// links that no file watch reports.
const LOOK: Duration = Duration::from_secs(2);

type Hash = [u8; 32];

/// The keys that are valid now.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    path: PathBuf,
    hashes: Arc<RwLock<Vec<Hash>>>,
    /// How often the file made no sense, or was away.
    pub(crate) errors: Arc<Count>,
}

/// The file of keys is no good.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// It cannot be read.
    #[error("--api-keys {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line makes no sense.
    #[error("--api-keys {path}, line {line}: write a name, a space and the key's SHA-256 in hex")]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
}

/// The file of the workers' key is no good.
#[derive(Debug, thiserror::Error)]
pub enum WorkerKeyError {
    /// It cannot be read.
    #[error("--worker-key {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It holds no key.
    #[error("--worker-key {0}: write the key alone into the file, on one line")]
    NoKey(PathBuf),
}

/// What workers are to see as `Authorization`, from a file with a key.
pub(crate) fn worker_key(path: &Path) -> Result<HeaderValue, WorkerKeyError> {
    let text = std::fs::read_to_string(path).map_err(|source| WorkerKeyError::Read {
        path: path.to_owned(),
        source,
    })?;
    let key = text.trim();
    let bearer = HeaderValue::try_from(format!("Bearer {key}"))
        .ok()
        .filter(|_| !key.is_empty());
    let mut bearer = bearer.ok_or_else(|| WorkerKeyError::NoKey(path.to_owned()))?;
    bearer.set_sensitive(true);
    Ok(bearer)
}

impl Keys {
    /// Reads the file.
    ///
    /// # Errors
    /// When it cannot be read or a line makes no sense.
    pub(crate) fn read(path: &Path) -> Result<Self, KeysError> {
        Ok(Self {
            path: path.to_owned(),
            hashes: Arc::new(RwLock::new(load(path)?)),
            errors: Arc::default(),
        })
    }

    /// Reads the file again and again. A file that makes no sense changes nothing.
    pub(crate) async fn follow(self) {
        loop {
            tokio::time::sleep(LOOK).await;
            match load(&self.path) {
                Ok(hashes) => *self.hashes.write().unwrap_or_else(PoisonError::into_inner) = hashes,
                Err(error) => {
                    self.errors.up();
                    tracing::warn!(%error, "the API keys known so far stay valid");
                }
            }
        }
    }

    /// Whether the request carries a valid key.
    pub(crate) fn admit(&self, headers: &HeaderMap) -> bool {
        let bearer = |value: &[u8]| {
            let (scheme, key) = value.split_at_checked(7)?;
            scheme
                .eq_ignore_ascii_case(b"bearer ")
                .then(|| Sha256::digest(key.trim_ascii()).into())
        };
        let sent: Option<Hash> = headers
            .get(AUTHORIZATION)
            .and_then(|v| bearer(v.as_bytes()));
        let Some(sent) = sent else {
            return false;
        };
        let hashes = self.hashes.read().unwrap_or_else(PoisonError::into_inner);
        // No early exit: neither within a hash nor between them.
        hashes
            .iter()
            .fold(false, |found, hash| found | same(hash, &sent))
    }
}

fn same(a: &Hash, b: &Hash) -> bool {
    let difference = a.iter().zip(b).fold(0, |all, (a, b)| all | (a ^ b));
    std::hint::black_box(difference) == 0
}

fn load(path: &Path) -> Result<Vec<Hash>, KeysError> {
    let text = std::fs::read_to_string(path).map_err(|source| KeysError::Read {
        path: path.to_owned(),
        source,
    })?;
    let lines = text.lines().enumerate();
    let meant = lines.filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'));
    meant
        .map(|(index, line)| {
            parse(line).ok_or_else(|| KeysError::Line {
                path: path.to_owned(),
                line: index + 1,
            })
        })
        .collect()
}

fn parse(line: &str) -> Option<Hash> {
    let (_name, hex) = line.trim().split_once(char::is_whitespace)?;
    let hex = hex.trim_start();
    if hex.len() != 64 || !hex.is_ascii() {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(hex.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(hash)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(value: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_static(value));
        headers
    }

    #[test]
    fn only_a_bearer_of_a_listed_key_is_admitted() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // printf %s secret | sha256sum
        let hash = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
        std::fs::write(file.path(), format!("# keys\n\nalice {hash}\n")).unwrap();
        let keys = Keys::read(file.path()).unwrap();
        assert!(keys.admit(&headers("Bearer secret")));
        assert!(keys.admit(&headers("bearer secret")));
        for wrong in ["Bearer Secret", "Bearer ", "Basic secret", "secret", "B"] {
            assert!(!keys.admit(&headers(wrong)), "{wrong}");
        }
        assert!(!keys.admit(&HeaderMap::new()));
    }

    #[test]
    fn a_line_that_makes_no_sense_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "alice nonsense\n").unwrap();
        let error = Keys::read(file.path()).unwrap_err();
        assert!(error.to_string().contains("line 1"), "{error}");
    }
}
