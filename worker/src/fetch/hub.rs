//! Snapshots of the Hugging Face hub in its own cache layout: contents under
//! `blobs` by digest, `snapshots/<commit>` linking to them by name, `refs` from
//! revisions to commits. Python's tools find what is fetched here, and the reverse.

use std::fs;
use std::path::PathBuf;

use reqwest::header::AUTHORIZATION;
use serde::Deserialize;

use super::download::Progress;
use super::origin::Origin;
use super::snapshot::{self, File};
use super::{FetchError, Fetcher};

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
            let files = self.files(id, &listing)?;
            snapshot::fill(&folder, &listing.sha, &files, on_progress).await?;
        }
        snapshot::write_whole(&reference, &listing.sha)?;
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
        match listing.names().iter().find(|name| !snapshot::is_safe(name)) {
            Some(name) => Err(wrong(format!(
                "the file name {name:?} leads out of the folder"
            ))),
            None => Ok(listing),
        }
    }

    /// Every file that matters, and where its contents are.
    fn files(&self, id: &str, listing: &Listing) -> Result<Vec<File<'_>>, FetchError> {
        let all = listing.names();
        let wanted = |file: &&Sibling| snapshot::matters(&file.rfilename, &all);
        let one = |file: &Sibling| {
            let url = format!(
                "{}/{id}/resolve/{}/{}",
                self.endpoint, listing.sha, file.rfilename
            );
            let sha256 = file.lfs.as_ref().map(|lfs| lfs.sha256.clone());
            let digest = sha256.as_ref().or(file.blob_id.as_ref()).filter(|digest| {
                digest.len() >= 40 && digest.chars().all(|c| c.is_ascii_hexdigit())
            });
            let Some(digest) = digest.cloned() else {
                return Err(FetchError::Wrong {
                    url,
                    problem: "the listing gives no digest for it".to_owned(),
                });
            };
            Ok(File {
                name: file.rfilename.clone(),
                blob: digest,
                size: file.size,
                sha256,
                origin: Origin::Http {
                    client: &self.client,
                    token: self.token.as_deref(),
                },
                url,
            })
        };
        listing.siblings.iter().filter(wanted).map(one).collect()
    }
}

impl Listing {
    fn names(&self) -> Vec<&str> {
        self.siblings
            .iter()
            .map(|file| file.rfilename.as_str())
            .collect()
    }
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.chars().all(|c| c.is_ascii_hexdigit())
}
