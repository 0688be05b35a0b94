//! Brings a checkpoint to this machine: from the Hugging Face hub into its usual
//! cache layout, from a folder of an object store into the same, or one file by HTTPS. Downloads go in several ranges at once,
//! go on where they were cut, are checked, and appear under their name only when
//! whole. What is in the cache already needs no network.

mod bucket;
mod checksum;
mod download;
mod hub;
mod lock;
mod origin;
mod snapshot;
mod source;

use std::io;
use std::path::{Path, PathBuf};

use crate::error_text::chain;
pub use bucket::{Settings, Store};
use checksum::Checksum;
pub use download::Progress;
pub use source::{BadSource, Source};

/// Where the hub is unless `HF_ENDPOINT` says otherwise.
const HUB: &str = "https://huggingface.co";

/// What happens while a source is fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A file is further.
    Progress(Progress),
    /// The source cannot be asked what is new; what was fetched of it before is used.
    Cached {
        /// Why it cannot be asked.
        why: String,
        /// What is used.
        path: PathBuf,
    },
}

/// Whom to tell.
type OnEvent<'a> = &'a (dyn Fn(Event) + Send + Sync);

/// Why a source could not be brought here.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The text names no source.
    #[error(transparent)]
    Source(#[from] BadSource),
    /// A local path is no folder.
    #[error("open {}: there is no such file or folder", path.display())]
    NoSuchPath {
        /// The path.
        path: PathBuf,
    },
    /// A request failed, however often it was tried.
    #[error("fetch {url}")]
    Request {
        /// What was asked for.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// The server answered with an error.
    #[error("fetch {url}: the server answered {status}{}", hint(*status))]
    Status {
        /// What was asked for.
        url: String,
        /// HTTP status.
        status: u16,
    },
    /// An object store refused, or could not be reached.
    #[error("fetch {url}: the store failed{}", store_hint(source))]
    Store {
        /// What was asked for.
        url: String,
        /// Why.
        source: Box<object_store::Error>,
    },
    /// What came is not what was promised.
    #[error("fetch {url}: {problem}")]
    Wrong {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The cache cannot be written.
    #[error("write {}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl FetchError {
    /// Wraps what a store says of `url`.
    fn in_store(url: &str) -> impl Fn(object_store::Error) -> Self + Send + use<> {
        let url = url.to_owned();
        move |source| Self::Store {
            url: url.clone(),
            source: Box::new(source),
        }
    }

    /// What was fetched before where the source only cannot be reached; else the error.
    fn unless_known(self, known: Option<PathBuf>, on_event: OnEvent<'_>) -> Result<PathBuf, Self> {
        match known {
            Some(path) if !self.is_final() => {
                let why = chain(&self);
                let used = path.clone();
                on_event(Event::Cached { why, path: used });
                Ok(path)
            }
            _ => Err(self),
        }
    }

    /// Whether asking again can only fail again.
    fn is_final(&self) -> bool {
        use object_store::Error;
        match self {
            Self::Write { .. } => true,
            // 408 and 429 are about the moment.
            Self::Status { status, .. } => {
                (400..500).contains(status) && !matches!(status, 408 | 429)
            }
            Self::Store { source, .. } => matches!(
                source.as_ref(),
                Error::NotFound { .. }
                    | Error::Precondition { .. }
                    | Error::PermissionDenied { .. }
                    | Error::Unauthenticated { .. }
                    | Error::InvalidPath { .. }
            ),
            _ => false,
        }
    }
}

fn store_hint(error: &object_store::Error) -> &'static str {
    use object_store::Error;
    match error {
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => {
            ": set credentials that may read it, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, \
             GOOGLE_SERVICE_ACCOUNT_KEY, or AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"
        }
        Error::NotFound { .. } => ": check the bucket's name and the path",
        Error::Precondition { .. } => ": the file changed while it was fetched; fetch again",
        _ => "",
    }
}

fn hint(status: u16) -> &'static str {
    match status {
        401 | 403 => ": set HF_TOKEN to a token that may read it",
        404 => ": check the name and the revision",
        _ => "",
    }
}

/// Fetches sources into a cache.
#[derive(Debug, Clone)]
pub struct Fetcher {
    client: reqwest::Client,
    cache: PathBuf,
    endpoint: String,
    token: Option<String>,
    settings: Settings,
}

impl Fetcher {
    /// A fetcher into `cache`. The hub is asked at `HF_ENDPOINT` with `HF_TOKEN`, where they are set.
    ///
    /// # Errors
    /// The TLS library cannot be set up.
    pub fn from_env(cache: &Path) -> Result<Self, FetchError> {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self::new(
            cache,
            &set("HF_ENDPOINT").unwrap_or_else(|| HUB.to_owned()),
            set("HF_TOKEN"),
        )
    }

    /// A fetcher into `cache` that asks the hub at `endpoint`.
    ///
    /// # Errors
    /// The TLS library cannot be set up.
    pub fn new(cache: &Path, endpoint: &str, token: Option<String>) -> Result<Self, FetchError> {
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        shell::tls::install_provider();
        let client = reqwest::Client::builder()
            .connect_timeout(std::time::Duration::from_secs(10))
            .read_timeout(std::time::Duration::from_secs(30))
            .build()
            .map_err(|source| FetchError::Request {
                url: endpoint.clone(),
                source,
            })?;
        Ok(Self {
            client,
            cache: cache.to_owned(),
            endpoint,
            token,
            settings: bucket::settings(),
        })
    }

    /// The same with other settings for object stores than the environment's.
    #[must_use]
    pub fn with_settings(self, settings: Settings) -> Self {
        Self { settings, ..self }
    }

    /// The local folder or file of `source`, fetched first if need be.
    ///
    /// # Errors
    /// It cannot be fetched, or is not what was promised.
    pub async fn resolve(
        &self,
        source: &Source,
        on_event: OnEvent<'_>,
    ) -> Result<PathBuf, FetchError> {
        match source {
            Source::Local(path) if path.exists() => Ok(path.clone()),
            Source::Local(path) => Err(FetchError::NoSuchPath { path: path.clone() }),
            Source::Hub { id, revision } => self.snapshot(id, revision, on_event).await,
            Source::Bucket {
                store,
                bucket,
                path,
            } => self.bucket(*store, bucket, path, on_event).await,
            Source::Https { url, sha256 } => self.file(url, sha256, on_event).await,
        }
    }

    /// One file, kept under its digest.
    async fn file(
        &self,
        url: &str,
        sha256: &str,
        on_event: OnEvent<'_>,
    ) -> Result<PathBuf, FetchError> {
        let last = url
            .split(['?', '#'])
            .next()
            .and_then(|path| path.rsplit('/').next());
        let name = last
            .filter(|name| !name.is_empty() && *name != ".." && *name != ".")
            .unwrap_or("file");
        let folder = self.cache.join("files").join(sha256);
        let path = folder.join(name);
        if path.is_file() {
            return Ok(path);
        }
        let _lock = lock::Lock::of(&folder).await?;
        if path.is_file() {
            return Ok(path);
        }
        let checksum = Checksum::Sha256(sha256.to_owned());
        let wanted = download::Wanted {
            url,
            origin: &origin::Origin::Http {
                client: &self.client,
                token: None,
            },
            size: None,
            checksum: Some(&checksum),
            path: &path,
        };
        let progress = |progress| on_event(Event::Progress(progress));
        download::fetch(&wanted, &progress).await?;
        Ok(path)
    }
}

/// The local folder or file of the source that `text` names, fetched first if need be.
///
/// # Errors
/// As [`Fetcher::resolve`], or `text` names no source.
pub async fn resolve(
    text: &str,
    cache: &Path,
    on_event: OnEvent<'_>,
) -> Result<PathBuf, FetchError> {
    let source: Source = text.parse()?;
    Fetcher::from_env(cache)?.resolve(&source, on_event).await
}
