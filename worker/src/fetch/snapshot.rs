//! A folder of fetched files in the hub's cache layout: contents under `blobs` by digest,
//! `snapshots/<key>` linking to them by name. A snapshot appears when it is whole.

use std::fs;
use std::path::{Component, Path, PathBuf};

use super::checksum::Checksum;
use super::download::{self, Progress, Wanted};
use super::lock::Lock;
use super::origin::Origin;
use super::{Event, FetchError, OnEvent};

/// Endings of the files that a checkpoint is made of.
const ENDINGS: &[&str] = &[".json", ".jinja", ".safetensors", ".model", ".txt"];

/// A file of a snapshot.
pub(super) struct File<'a> {
    /// Its name below the snapshot.
    pub(super) name: String,
    /// Its contents' name among the blobs.
    pub(super) blob: String,
    pub(super) size: Option<u64>,
    pub(super) checksum: Option<Checksum>,
    pub(super) origin: Origin<'a>,
    pub(super) url: String,
}

/// Fetches every file that is not here, then puts the snapshot in place in one step. Of
/// two processes with one cache the second waits and finds it.
pub(super) async fn fill(
    folder: &Path,
    key: &str,
    files: &[File<'_>],
    on_event: OnEvent<'_>,
) -> Result<(), FetchError> {
    let _lock = Lock::of(folder).await?;
    let snapshots = folder.join("snapshots");
    let whole = snapshots.join(key);
    if whole.is_dir() {
        return Ok(());
    }
    let building = snapshots.join(format!(".{key}.building"));
    if building.is_dir() {
        fs::remove_dir_all(&building).map_err(write_error(&building))?;
    }
    fs::create_dir_all(&building).map_err(write_error(&building))?;
    for file in files {
        let blob = folder.join("blobs").join(&file.blob);
        if !blob.is_file() {
            let wanted = Wanted {
                url: &file.url,
                origin: &file.origin,
                size: file.size,
                checksum: file.checksum.as_ref(),
                path: &blob,
            };
            download::fetch(&wanted, &|progress| {
                on_event(Event::Progress(Progress {
                    file: file.name.clone(),
                    ..progress
                }));
            })
            .await?;
        }
        link(&building.join(&file.name), &file.name, &file.blob)?;
    }
    fs::rename(&building, &whole).map_err(write_error(&whole))
}

/// Whether a file is part of a checkpoint, among `all` names beside it: pickled weights only
/// where the same are not there as safetensors. What else is pickled, such as the projector
/// beside an adapter (`non_lora_trainables.bin`), is no copy of anything.
pub(super) fn matters(name: &str, all: &[&str]) -> bool {
    if ENDINGS.iter().any(|ending| name.ends_with(ending)) {
        return true;
    }
    let Some(stem) = name.strip_suffix(".bin") else {
        return false;
    };
    let (folder, stem) = stem.rsplit_once('/').unwrap_or(("", stem));
    // `pytorch_model*.bin` is `model*.safetensors`, in as many parts as it likes.
    let whole = stem.starts_with("pytorch_model");
    !all.iter().any(|other| {
        let Some(other) = other.strip_suffix(".safetensors") else {
            return false;
        };
        let (beside, other) = other.rsplit_once('/').unwrap_or(("", other));
        beside == folder && (other == stem || whole && other.starts_with("model"))
    })
}

/// Whether a name stays inside its folder.
pub(super) fn is_safe(name: &str) -> bool {
    !name.is_empty()
        && Path::new(name)
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
}

/// The snapshot that `reference` was last at, if it is whole.
pub(super) fn known(folder: &Path, reference: &Path) -> Option<PathBuf> {
    let key = fs::read_to_string(reference).ok()?;
    let whole = is_safe(&key).then(|| folder.join("snapshots").join(key))?;
    whole.is_dir().then_some(whole)
}

/// Links `path`, which is `name` inside a snapshot, to its blob.
fn link(path: &Path, name: &str, blob: &str) -> Result<(), FetchError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(write_error(folder))?;
    }
    let up = "../".repeat(Path::new(name).components().count() + 1);
    std::os::unix::fs::symlink(format!("{up}blobs/{blob}"), path).map_err(write_error(path))
}

/// Writes a small file in one step.
pub(super) fn write_whole(path: &Path, text: &str) -> Result<(), FetchError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(write_error(folder))?;
    }
    let temporary = path.with_extension(format!("{}.new", std::process::id()));
    fs::write(&temporary, text)
        .and_then(|()| fs::rename(&temporary, path))
        .map_err(write_error(path))
}

pub(super) fn write_error(path: &Path) -> impl Fn(std::io::Error) -> FetchError {
    let path = path.to_owned();
    move |source| FetchError::Write {
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pickled_files_are_left_where_the_same_are_safe_and_nowhere_else() {
        let all = [
            "adapter_model.safetensors",
            "adapter_model.bin",
            "non_lora_trainables.bin",
            "whole/model-00001-of-00002.safetensors",
            "whole/pytorch_model-00001-of-00003.bin",
            "pickled/pytorch_model.bin",
            "README.md",
        ];
        let wanted: Vec<_> = all.into_iter().filter(|name| matters(name, &all)).collect();
        let expected = [
            "adapter_model.safetensors",
            "non_lora_trainables.bin",
            "whole/model-00001-of-00002.safetensors",
            "pickled/pytorch_model.bin",
        ];
        assert_eq!(wanted, expected);
    }
}
