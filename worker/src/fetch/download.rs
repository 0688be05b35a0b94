//! One file: in ranges, several at once, each noted when it is on disk, so that a
//! later attempt asks only for the rest. The file takes its name when its length
//! and digest are right.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::{StreamExt, stream};

use super::FetchError;
use super::checksum::Checksum;
use super::origin::{Answer, Origin};

/// Bytes asked for in one request.
const PART: u64 = 16 << 20;
/// Requests under way at a time for one file.
const AT_ONCE: usize = 4;
/// Attempts at one request.
const ATTEMPTS: u32 = 5;

/// How far a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// The file's name.
    pub file: String,
    /// Bytes on disk.
    pub done: u64,
    /// Bytes in all, where the server says.
    pub total: Option<u64>,
}

/// A file to fetch.
pub(super) struct Wanted<'a> {
    /// How messages call it.
    pub(super) url: &'a str,
    pub(super) origin: &'a Origin<'a>,
    pub(super) size: Option<u64>,
    pub(super) checksum: Option<&'a Checksum>,
    pub(super) path: &'a Path,
}

/// Attempts at one request so far, and longer and longer pauses between them.
#[derive(Default)]
pub(super) struct Attempts(u32);

impl Attempts {
    /// Waits until it is worth trying again.
    ///
    /// # Errors
    /// `error` itself where asking again can only fail again, or has failed often enough.
    pub(super) async fn again(&mut self, error: FetchError) -> Result<(), FetchError> {
        self.0 += 1;
        if error.is_final() || self.0 == ATTEMPTS {
            return Err(error);
        }
        tokio::time::sleep(Duration::from_millis(100 << self.0)).await;
        Ok(())
    }
}

/// Fetches a file to its path.
pub(super) async fn fetch(
    wanted: &Wanted<'_>,
    on_progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<(), FetchError> {
    let partial = Partial::open(wanted.path)?;
    if wanted.size == Some(0) {
        // There is no range to ask for.
        partial
            .file
            .set_len(0)
            .map_err(write_error(&partial.data))?;
        return finish(wanted, partial, 0);
    }
    let mut attempts = Attempts::default();
    let first = loop {
        match wanted.origin.ask(wanted.url, 0, PART - 1).await {
            Ok(answer) => break answer,
            Err(error) => attempts.again(error).await?,
        }
    };
    let Some(total) = first.total else {
        // No ranges here: the answer is the whole file.
        let written = partial.write_all(first).await?;
        return finish(wanted, partial, written);
    };
    if wanted.size.is_some_and(|size| size != total) {
        let problem = format!(
            "it has {total} bytes instead of {}",
            wanted.size.unwrap_or_default()
        );
        return Err(FetchError::Wrong {
            url: wanted.url.to_owned(),
            problem,
        });
    }
    let here = partial.parts_here(total)?;
    let length = |part: u64| PART.min(total - part * PART);
    let done = AtomicU64::new(here.iter().map(|part| length(*part)).sum());
    let file = wanted
        .path
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let report = |more: u64| {
        let done = done.fetch_add(more, Ordering::Relaxed) + more;
        on_progress(Progress {
            file: file.clone(),
            done,
            total: Some(total),
        });
    };
    report(0);
    // The first answer is dropped unread where its part is here already.
    let mut first = Some(first).filter(|_| !here.contains(&0));
    let missing = (0..total.div_ceil(PART)).filter(|part| !here.contains(part));
    // After a failure no part is begun, but those under way are worth keeping.
    let failed = AtomicBool::new(false);
    let failed = &failed;
    let downloads: Vec<_> = missing
        .map(|part| {
            let answer = if part == 0 { first.take() } else { None };
            let partial = &partial;
            async move {
                if failed.load(Ordering::Relaxed) {
                    return Ok(0);
                }
                let result = one_part(wanted, partial, part, length(part), answer).await;
                failed.fetch_or(result.is_err(), Ordering::Relaxed);
                result
            }
        })
        .collect();
    let mut outcome = Ok(());
    let mut downloads = stream::iter(downloads).buffer_unordered(AT_ONCE);
    while let Some(result) = downloads.next().await {
        match result {
            Ok(bytes) => report(bytes),
            Err(error) => outcome = outcome.and(Err(error)),
        }
    }
    drop(downloads);
    outcome?;
    finish(wanted, partial, total)
}

async fn one_part(
    wanted: &Wanted<'_>,
    partial: &Partial,
    part: u64,
    length: u64,
    mut answer: Option<Answer>,
) -> Result<u64, FetchError> {
    let start = part * PART;
    let mut attempts = Attempts::default();
    loop {
        let tried = async {
            let answer = match answer.take() {
                Some(answer) => answer,
                None => {
                    wanted
                        .origin
                        .ask(wanted.url, start, start + length - 1)
                        .await?
                }
            };
            partial.write_part(wanted.url, answer, start, length).await
        };
        match tried.await {
            Ok(()) => break,
            Err(error) => attempts.again(error).await?,
        }
    }
    if wanted.checksum.is_none() {
        // Nothing will tell that a part which is noted never reached the disk.
        partial.sync()?;
    }
    partial.note(part)?;
    Ok(length)
}

/// Checks what is on disk and gives it its name.
fn finish(wanted: &Wanted<'_>, partial: Partial, length: u64) -> Result<(), FetchError> {
    let wrong = |problem| FetchError::Wrong {
        url: wanted.url.to_owned(),
        problem,
    };
    let checked = if wanted.size.is_some_and(|size| size != length) {
        Err(wrong(format!(
            "{length} bytes came instead of {}",
            wanted.size.unwrap_or_default()
        )))
    } else {
        match wanted.checksum {
            None => Ok(()),
            Some(checksum) => {
                let found = checksum
                    .of_file(&partial.data)
                    .map_err(write_error(&partial.data))?;
                if found == *checksum {
                    Ok(())
                } else {
                    Err(wrong(format!("its {found} is not the promised {checksum}")))
                }
            }
        }
    };
    match checked {
        Ok(()) => partial.name(wanted.path),
        Err(error) => {
            // Going on from wrong bytes would never end well.
            partial.discard()?;
            Err(error)
        }
    }
}

fn write_error(path: &Path) -> impl Fn(io::Error) -> FetchError {
    let path = path.to_owned();
    move |source| FetchError::Write {
        path: path.clone(),
        source,
    }
}

/// A file on its way: its bytes, and which parts of them are there. Whoever opens one
/// holds the lock of its place in the cache.
struct Partial {
    data: PathBuf,
    notes: PathBuf,
    file: File,
    noted: Mutex<File>,
}

impl Partial {
    fn open(path: &Path) -> Result<Self, FetchError> {
        let beside = |suffix: &str| {
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push(suffix);
            path.with_file_name(name)
        };
        let (data, notes) = (beside(".incomplete"), beside(".parts"));
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(write_error(folder))?;
        }
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true);
        let file = options.open(&data).map_err(write_error(&data))?;
        let noted = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&notes)
            .map_err(write_error(&notes))?;
        Ok(Self {
            data,
            notes,
            file,
            noted: Mutex::new(noted),
        })
    }

    /// Parts noted earlier, if they are of a file of this length.
    fn parts_here(&self, total: u64) -> Result<HashSet<u64>, FetchError> {
        let text = fs::read_to_string(&self.notes).unwrap_or_default();
        let here = self.file.metadata().map_err(write_error(&self.data))?.len();
        let parts = total.div_ceil(PART);
        if here == total {
            return Ok(text
                .lines()
                .filter_map(|line| line.parse().ok())
                .filter(|part| *part < parts)
                .collect());
        }
        self.file
            .set_len(0)
            .and_then(|()| self.file.set_len(total))
            .map_err(write_error(&self.data))?;
        fs::write(&self.notes, "").map_err(write_error(&self.notes))?;
        Ok(HashSet::new())
    }

    async fn write_part(
        &self,
        url: &str,
        answer: Answer,
        start: u64,
        length: u64,
    ) -> Result<(), FetchError> {
        let mut at = 0;
        let mut body = answer.body;
        while let Some(bytes) = body.next().await {
            let bytes = bytes?;
            if at + bytes.len() as u64 > length {
                break;
            }
            self.file
                .write_all_at(&bytes, start + at)
                .map_err(write_error(&self.data))?;
            at += bytes.len() as u64;
        }
        if at == length {
            return Ok(());
        }
        let problem = format!("{at} of {length} bytes came");
        Err(FetchError::Wrong {
            url: url.to_owned(),
            problem,
        })
    }

    async fn write_all(&self, answer: Answer) -> Result<u64, FetchError> {
        self.file.set_len(0).map_err(write_error(&self.data))?;
        let mut at = 0;
        let mut body = answer.body;
        while let Some(bytes) = body.next().await {
            let bytes = bytes?;
            self.file
                .write_all_at(&bytes, at)
                .map_err(write_error(&self.data))?;
            at += bytes.len() as u64;
        }
        Ok(at)
    }

    fn sync(&self) -> Result<(), FetchError> {
        self.file.sync_data().map_err(write_error(&self.data))
    }

    fn note(&self, part: u64) -> Result<(), FetchError> {
        let mut notes = self
            .noted
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        writeln!(notes, "{part}").map_err(write_error(&self.notes))
    }

    fn name(self, path: &Path) -> Result<(), FetchError> {
        self.file.sync_all().map_err(write_error(&self.data))?;
        fs::rename(&self.data, path).map_err(write_error(path))?;
        fs::remove_file(&self.notes).map_err(write_error(&self.notes))
    }

    fn discard(self) -> Result<(), FetchError> {
        fs::remove_file(&self.data).map_err(write_error(&self.data))?;
        fs::remove_file(&self.notes).map_err(write_error(&self.notes))
    }
}
