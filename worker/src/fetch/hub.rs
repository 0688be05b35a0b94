//! Snapshots of the Hugging Face hub in its own cache layout: contents under
//! `blobs` by digest, `snapshots/<commit>` linking to them by name, `refs` from
//! revisions to commits. Python's tools find what is fetched here, and the reverse.

use std::fs;
use std::path::{Component, Path, PathBuf};

use reqwest::header::AUTHORIZATION;
use serde::Deserialize;

use super::download::{self, Progress, Wanted};
use super::{FetchError, Fetcher};

/// Endings of the files that a checkpoint is made of.
const ENDINGS: &[&str] = &[".json", ".jinja", ".safetensors", ".model", ".txt"];
/// Longest listing of a repository that is read, in bytes.
const LONGEST_LISTING: usize = 16 << 20;

#[derive(Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    size: Option<u64>,
    #[serde(rename = "blobId")]
    blob_id: Option<String>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: String,
}

impl Fetcher {
    /// The folder of a repository's snapshot.
    pub(super) async fn snapshot(
        &self,
        id: &str,
        revision: &str,
        on_progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<PathBuf, FetchError> {
        let folder = self
            .cache
            .join(format!("models--{}", id.replace('/', "--")));
        let reference = folder.join("refs").join(revision);
        // A commit never changes: once whole, it needs no asking.
        let commit = is_commit(revision).then(|| folder.join("snapshots").join(revision));
        if let Some(whole) = commit.filter(|path| path.is_dir()) {
            return Ok(whole);
        }
        let listing = match self.listing(id, revision).await {
            Ok(listing) => listing,
            Err(error @ FetchError::Request { .. }) => {
                let known = fs::read_to_string(&reference)
                    .ok()
                    .filter(|commit| is_commit(commit));
                let whole = known.map(|commit| folder.join("snapshots").join(commit));
                return whole.filter(|path| path.is_dir()).ok_or(error);
            }
            Err(error) => return Err(error),
        };
        let snapshot = folder.join("snapshots").join(&listing.sha);
        if !snapshot.is_dir() {
            self.fill(id, &listing, &folder, on_progress).await?;
        }
        write_whole(&reference, &listing.sha)?;
        Ok(snapshot)
    }

    async fn listing(&self, id: &str, revision: &str) -> Result<Listing, FetchError> {
        let url = format!(
            "{}/api/models/{id}/revision/{}?blobs=true",
            self.endpoint,
            revision.replace('/', "%2F")
        );
        let mut request = self.client.get(&url);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let failed = |source| FetchError::Request {
            url: url.clone(),
            source,
        };
        let mut answer = request.send().await.map_err(failed)?;
        if !answer.status().is_success() {
            return Err(FetchError::Status {
                url,
                status: answer.status().as_u16(),
            });
        }
        let wrong = |problem: String| FetchError::Wrong {
            url: url.clone(),
            problem,
        };
        let mut body = Vec::new();
        while let Some(bytes) = answer.chunk().await.map_err(failed)? {
            body.extend_from_slice(&bytes);
            if body.len() > LONGEST_LISTING {
                return Err(wrong(format!(
                    "the listing is longer than {LONGEST_LISTING} bytes"
                )));
            }
        }
        let listing: Listing =
            serde_json::from_slice(&body).map_err(|error| wrong(error.to_string()))?;
        if !is_commit(&listing.sha) {
            return Err(wrong("the listing names no commit".to_owned()));
        }
        match listing
            .siblings
            .iter()
            .find(|file| !is_safe(&file.rfilename))
        {
            Some(file) => Err(wrong(format!(
                "the file name {:?} leads out of the folder",
                file.rfilename
            ))),
            None => Ok(listing),
        }
    }

    /// Fetches every file that matters, then puts the snapshot in place in one step.
    async fn fill(
        &self,
        id: &str,
        listing: &Listing,
        folder: &Path,
        on_progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), FetchError> {
        let snapshots = folder.join("snapshots");
        let building = snapshots.join(format!(".{}.building", listing.sha));
        if building.is_dir() {
            fs::remove_dir_all(&building).map_err(write_error(&building))?;
        }
        for file in wanted(&listing.siblings) {
            let name = &file.rfilename;
            let sha256 = file.lfs.as_ref().map(|lfs| lfs.sha256.as_str());
            let digest = sha256
                .or(file.blob_id.as_deref())
                .filter(|digest| digest.chars().all(|c| c.is_ascii_hexdigit()));
            let url = format!("{}/{id}/resolve/{}/{name}", self.endpoint, listing.sha);
            let Some(digest) = digest.filter(|digest| digest.len() >= 40) else {
                return Err(FetchError::Wrong {
                    url,
                    problem: "the listing gives no digest for it".to_owned(),
                });
            };
            let blob = folder.join("blobs").join(digest);
            if !blob.is_file() {
                let wanted = Wanted {
                    url: &url,
                    token: self.token.as_deref(),
                    size: file.size,
                    sha256,
                    path: &blob,
                };
                download::fetch(&self.client, &wanted, &|progress| {
                    on_progress(Progress {
                        file: name.clone(),
                        ..progress
                    });
                })
                .await?;
            }
            link(&building.join(name), name, digest)?;
        }
        let whole = snapshots.join(&listing.sha);
        fs::rename(&building, &whole).map_err(write_error(&whole))
    }
}

/// The files of a checkpoint; pickled weights only where there are no others.
fn wanted(files: &[Sibling]) -> impl Iterator<Item = &Sibling> {
    let safe = files
        .iter()
        .any(|file| file.rfilename.ends_with(".safetensors"));
    files.iter().filter(move |file| {
        let name = file.rfilename.as_str();
        ENDINGS.iter().any(|ending| name.ends_with(ending)) || !safe && name.ends_with(".bin")
    })
}

/// Links `path`, which is `name` inside a snapshot, to its blob.
fn link(path: &Path, name: &str, digest: &str) -> Result<(), FetchError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(write_error(folder))?;
    }
    let up = "../".repeat(Path::new(name).components().count() + 1);
    std::os::unix::fs::symlink(format!("{up}blobs/{digest}"), path).map_err(write_error(path))
}

fn write_whole(path: &Path, text: &str) -> Result<(), FetchError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(write_error(folder))?;
    }
    let temporary = path.with_extension("new");
    fs::write(&temporary, text)
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(write_error(path))
}

fn write_error(path: &Path) -> impl Fn(std::io::Error) -> FetchError {
    let path = path.to_owned();
    move |source| FetchError::Write {
        path: path.clone(),
        source,
    }
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.chars().all(|c| c.is_ascii_hexdigit())
}

/// Whether a name stays inside its folder.
fn is_safe(name: &str) -> bool {
    !name.is_empty()
        && Path::new(name)
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
}
