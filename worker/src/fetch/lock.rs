//! One process at a time fills a folder of the cache.

use std::fs::{self, File};
use std::path::Path;

use super::FetchError;
use super::snapshot::write_error;

/// Held until it is dropped, or its process ends.
pub(super) struct Lock(#[allow(dead_code, reason = "closing the file gives the lock back")] File);

impl Lock {
    /// Waits until nobody else fills `folder`.
    pub(super) async fn of(folder: &Path) -> Result<Self, FetchError> {
        fs::create_dir_all(folder).map_err(write_error(folder))?;
        let path = folder.join(".lock");
        let file = File::options().create(true).append(true).open(&path);
        let file = file.map_err(write_error(&path))?;
        let waiting = tokio::task::spawn_blocking(move || file.lock().map(|()| file));
        let locked = waiting.await.map_err(std::io::Error::other);
        let file = locked
            .and_then(|locked| locked)
            .map_err(write_error(&path))?;
        Ok(Self(file))
    }
}
