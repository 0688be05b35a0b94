//! Folders in object stores: `s3://`, `gs://` and `az://`, with the credentials that
//! their own tools take from the environment. They are kept like the hub's snapshots,
//! keyed by what the listing says of every file.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use futures::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::{ClientOptions, ObjectMeta, ObjectStore, ObjectStoreExt, RetryConfig};
use sha2::{Digest, Sha256};

use super::origin::Origin;
use super::snapshot::{self, File};
use super::{FetchError, Fetcher, OnEvent};

/// Longest listing of a folder that is read, in files.
const MOST_FILES: usize = 10_000;

/// An object store that sources name by their scheme.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// Amazon S3 and what speaks its protocol.
    S3,
    /// Google Cloud Storage.
    Gcs,
    /// Azure Blob Storage.
    Azure,
}

impl Store {
    /// What stands before `://`.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gcs => "gs",
            Self::Azure => "az",
        }
    }

    /// How the variables of its credentials begin.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::S3 => "AWS_",
            Self::Gcs => "GOOGLE_",
            Self::Azure => "AZURE_",
        }
    }
}

/// Settings of stores, as environment variables name them.
pub type Settings = BTreeMap<String, String>;

/// The settings that the environment has for stores.
pub(super) fn settings() -> Settings {
    let stores = [Store::S3, Store::Gcs, Store::Azure];
    std::env::vars()
        .filter(|(name, _)| stores.iter().any(|store| name.starts_with(store.prefix())))
        .collect()
}

impl Fetcher {
    /// The folder of what lies under `path` in a bucket.
    pub(super) async fn bucket(
        &self,
        store: Store,
        bucket: &str,
        path: &str,
        on_event: OnEvent<'_>,
    ) -> Result<PathBuf, FetchError> {
        let url = format!("{}://{bucket}/{path}", store.scheme());
        let wrong = |problem: String| FetchError::Wrong {
            url: url.clone(),
            problem,
        };
        let client = open(store, bucket, &self.settings).map_err(FetchError::in_store(&url))?;
        let root = Path::parse(path).map_err(|error| wrong(error.to_string()))?;
        let name = format!("{}--{bucket}--{}", store.scheme(), path.replace('/', "--"));
        let folder = self.cache.join(name);
        let reference = folder.join("refs/latest");
        let objects = match list(client.as_ref(), &root).await {
            Ok(objects) => objects,
            Err(error) => {
                // Of a list that failed the library hides why; of a file it tells.
                let probe = client.head(&root.clone().join("config.json")).await;
                let error = match probe.map_err(FetchError::in_store(&url)) {
                    Err(clear) if clear.is_final() => clear,
                    _ => FetchError::in_store(&url)(error),
                };
                // What was whole once serves while the store cannot be reached.
                return error.unless_known(snapshot::known(&folder, &reference), on_event);
            }
        };
        if objects.is_empty() {
            return Err(wrong(
                "there is no file below it: check the name".to_owned(),
            ));
        }
        if objects.len() > MOST_FILES {
            return Err(wrong(format!(
                "there are more than {MOST_FILES} files below it"
            )));
        }
        let mut found = BTreeMap::new();
        for object in &objects {
            let below = object.location.prefix_match(&root).into_iter().flatten();
            let name = below
                .map(|part| part.as_ref().to_owned())
                .collect::<Vec<_>>()
                .join("/");
            if !snapshot::is_safe(&name) {
                return Err(wrong(format!(
                    "the file name {name:?} leads out of the folder"
                )));
            }
            found.insert(name, object);
        }
        let all: Vec<&str> = found.keys().map(String::as_str).collect();
        let mut key = Sha256::new();
        let mut files = Vec::new();
        for (name, object) in &found {
            if snapshot::matters(name, &all) {
                let version = version(object);
                key.update(format!("{name}\n{version}\n"));
                files.push(File {
                    name: name.clone(),
                    blob: hex(&Sha256::digest(format!("{}\n{version}", object.location))),
                    size: Some(object.size),
                    checksum: None,
                    origin: Origin::Object {
                        store: client.as_ref(),
                        path: object.location.clone(),
                        version: object.e_tag.as_deref().map(quoted),
                    },
                    url: format!("{}://{bucket}/{}", store.scheme(), object.location),
                });
            }
        }
        let key = hex(&key.finalize());
        snapshot::fill(&folder, &key, &files, on_event).await?;
        snapshot::write_whole(&reference, &key)?;
        Ok(folder.join("snapshots").join(key))
    }
}

async fn list(store: &dyn ObjectStore, root: &Path) -> object_store::Result<Vec<ObjectMeta>> {
    use futures::StreamExt;
    let some = store.list(Some(root)).take(MOST_FILES + 1);
    let mut objects: Vec<ObjectMeta> = some.try_collect().await?;
    // Some stores keep an empty object for a folder.
    objects.retain(|object| object.size > 0 || !object.location.as_ref().ends_with('/'));
    Ok(objects)
}

/// An entity tag as headers have it; Azure's listing leaves the quotes out.
fn quoted(tag: &str) -> String {
    match tag.contains('"') {
        true => tag.to_owned(),
        false => format!("\"{tag}\""),
    }
}

/// What tells one version of an object from another.
fn version(object: &ObjectMeta) -> String {
    let tag = object.e_tag.as_deref().unwrap_or_default();
    format!(
        "{tag} {} {}",
        object.size,
        object.last_modified.timestamp_millis()
    )
}

fn open(
    store: Store,
    bucket: &str,
    settings: &Settings,
) -> object_store::Result<Box<dyn ObjectStore>> {
    let mine = || {
        settings
            .iter()
            .filter(|(name, _)| name.starts_with(store.prefix()))
    };
    // An address that is written as `http://` is meant.
    let plain = mine().any(|(_, value)| value.starts_with("http://"));
    let client = ClientOptions::new()
        .with_connect_timeout(Duration::from_secs(10))
        .with_timeout_disabled()
        .with_read_timeout(Duration::from_secs(30))
        .with_allow_http(plain);
    let retry = RetryConfig {
        max_retries: 3,
        retry_timeout: Duration::from_secs(60),
        ..RetryConfig::default()
    };
    macro_rules! built {
        ($builder:expr) => {{
            let mut builder = $builder.with_client_options(client).with_retry(retry);
            for (name, value) in mine() {
                if let Ok(key) = name.to_ascii_lowercase().parse() {
                    builder = builder.with_config(key, value);
                }
            }
            Box::new(builder.build()?)
        }};
    }
    Ok(match store {
        Store::S3 => built!(AmazonS3Builder::new().with_bucket_name(bucket)),
        Store::Gcs => built!(GoogleCloudStorageBuilder::new().with_bucket_name(bucket)),
        Store::Azure => built!(MicrosoftAzureBuilder::new().with_container_name(bucket)),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
