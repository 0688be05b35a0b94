//! Snapshots of the Hugging Face hub in its own cache layout: contents under
//! `blobs` by digest, `snapshots/<commit>` linking to them by name, `refs` from
//! revisions to commits. Python's tools find what is fetched here, and the reverse.

use std::path::PathBuf;

use reqwest::header::AUTHORIZATION;
use serde::Deserialize;

use super::checksum::Checksum;
use super::download::Attempts;
use super::origin::Origin;
use super::snapshot::{self, File};
use super::{FetchError, Fetcher, OnEvent};

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
        on_event: OnEvent<'_>,
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
        let known = snapshot::known(&folder, &reference);
        let mut attempts = Attempts::default();
        let listing = loop {
            match self.listing(id, revision).await {
                Ok(listing) => break listing,
                Err(error @ FetchError::Wrong { .. }) => return Err(error),
                Err(error) if known.is_some() => return error.unless_known(known, on_event),
                Err(error) => attempts.again(error).await?,
            }
        };
        let snapshot = folder.join("snapshots").join(&listing.sha);
        if !snapshot.is_dir() {
            let files = self.files(id, &listing)?;
            snapshot::fill(&folder, &listing.sha, &files, on_event).await?;
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
            // A large file's id in Git is that of its pointer.
            let checksum = match (&file.lfs, &file.blob_id) {
                (Some(lfs), _) => Some(Checksum::Sha256(lfs.sha256.to_ascii_lowercase())),
                (None, Some(id)) => Some(Checksum::GitBlob(id.to_ascii_lowercase())),
                (None, None) => None,
            };
            let Some(checksum) = checksum.filter(Checksum::is_well_formed) else {
                return Err(FetchError::Wrong {
                    url,
                    problem: "the listing gives no digest for it".to_owned(),
                });
            };
            Ok(File {
                name: file.rfilename.clone(),
                blob: checksum.hex().to_owned(),
                size: file.size,
                checksum: Some(checksum),
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
