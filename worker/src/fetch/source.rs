//! Where a checkpoint comes from, as users write it.

use std::path::PathBuf;
use std::str::FromStr;

use super::bucket::Store;

/// A checkpoint's source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A path on this machine.
    Local(PathBuf),
    /// `hf://owner/name[@revision]`.
    Hub {
        /// `owner/name`.
        id: String,
        /// Branch, tag or commit.
        revision: String,
    },
    /// `s3://bucket/path`, `gs://bucket/path` or `az://container/path`: a folder.
    Bucket {
        /// Which kind of store.
        store: Store,
        /// Bucket or container.
        bucket: String,
        /// Folder inside, without slashes at its ends.
        path: String,
    },
    /// `https://…#sha256=…`: one file.
    Https {
        /// The address without its fragment.
        url: String,
        /// The file's digest in lower-case hex.
        sha256: String,
    },
}

/// A text that names no source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read {text:?} as a source: {problem}")]
pub struct BadSource {
    text: String,
    problem: &'static str,
}

impl FromStr for Source {
    type Err = BadSource;

    fn from_str(text: &str) -> Result<Self, BadSource> {
        let bad = |problem| BadSource {
            text: text.to_owned(),
            problem,
        };
        if let Some(rest) = text.strip_prefix("hf://") {
            let (id, revision) = rest.split_once('@').unwrap_or((rest, "main"));
            let good = |part: &str| {
                let letter = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
                !part.is_empty() && part.chars().all(letter) && !part.starts_with('.')
            };
            let named = id
                .split_once('/')
                .is_some_and(|(owner, name)| good(owner) && good(name));
            if !named || !revision.split('/').all(good) {
                return Err(bad("expected hf://owner/name or hf://owner/name@revision"));
            }
            return Ok(Self::Hub {
                id: id.to_owned(),
                revision: revision.to_owned(),
            });
        }
        if text.starts_with("https://") || text.starts_with("http://") {
            let digest = text
                .split_once("#sha256=")
                .map(|(url, digest)| (url, digest.to_ascii_lowercase()));
            let hex =
                |digest: &str| digest.len() == 64 && digest.chars().all(|c| c.is_ascii_hexdigit());
            return match digest {
                Some((url, sha256)) if hex(&sha256) => Ok(Self::Https {
                    url: url.to_owned(),
                    sha256,
                }),
                _ => Err(bad(
                    "a file by HTTP needs its digest behind it: #sha256= and 64 hex digits",
                )),
            };
        }
        for store in [Store::S3, Store::Gcs, Store::Azure] {
            let rest = text
                .strip_prefix(store.scheme())
                .and_then(|rest| rest.strip_prefix("://"));
            let Some(rest) = rest else { continue };
            let (bucket, path) = rest.split_once('/').unwrap_or((rest, ""));
            let path = path.trim_end_matches('/');
            let good = |part: &str| !part.is_empty() && part != "." && part != "..";
            let letter = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            if !good(bucket)
                || !bucket.chars().all(letter)
                || path.is_empty()
                || !path.split('/').all(good)
            {
                return Err(bad(
                    "expected a bucket and a folder in it, as in s3://bucket/path",
                ));
            }
            return Ok(Self::Bucket {
                store,
                bucket: bucket.to_owned(),
                path: path.to_owned(),
            });
        }
        if text.contains("://") {
            return Err(bad(
                "known are a path, hf://, s3://, gs://, az:// and https://",
            ));
        }
        if text.is_empty() {
            return Err(bad("it is empty"));
        }
        Ok(Self::Local(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_apart_by_their_scheme() {
        let hub = |id: &str, revision: &str| Source::Hub {
            id: id.to_owned(),
            revision: revision.to_owned(),
        };
        assert_eq!("hf://a/b".parse(), Ok(hub("a/b", "main")));
        assert_eq!("hf://a/b@refs/pr/1".parse(), Ok(hub("a/b", "refs/pr/1")));
        assert_eq!(
            "gs://b/models/demo/".parse(),
            Ok(Source::Bucket {
                store: Store::Gcs,
                bucket: "b".to_owned(),
                path: "models/demo".to_owned(),
            })
        );
        assert_eq!(
            "models/demo".parse(),
            Ok(Source::Local("models/demo".into()))
        );
        for wrong in [
            "",
            "hf://a",
            "hf://a/b/c",
            "hf://../b",
            "hf://a/b@../c",
            "https://x/y",
            "https://x/y#sha256=12",
            "ftp://x",
            "s3://bucket",
            "s3:///a",
            "az://b/../c",
        ] {
            assert!(wrong.parse::<Source>().is_err(), "{wrong}");
        }
    }
}
