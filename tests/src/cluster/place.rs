//! A cluster's place on this machine: a number from which its folder, addresses,
//! link and cgroup follow, and a note of who owns it. The note is what lets a
//! later run clear up after a process that was killed.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::{
    cgroup::Cgroup,
    command,
    error::Error,
    network::{Network, PLACES},
};

/// Where the folders of all clusters lie. It is outside what the namespaces of
/// a cluster cover with file systems of their own.
const ROOT: &str = "/tmp/llava-test-clusters";

const OWNER: &str = "owner.json";

/// A process, told apart from a later one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pid: u32,
    /// Clock ticks from the machine's start to the process's.
    started: u64,
}

impl Process {
    /// The live process with this number, if there is one.
    #[must_use]
    pub fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in brackets and may hold anything; what follows is plain.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let state = fields.next()?;
        let started = fields.nth(18)?.parse().ok()?;
        (!matches!(state, "Z" | "X")).then_some(Self { pid, started })
    }

    /// Its number.
    #[must_use]
    pub fn pid(self) -> u32 {
        self.pid
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Sends it a signal, by name; one that has ended is left alone.
    pub(super) async fn signal(self, signal: &str) {
        if self.is_alive() {
            let mut kill = Command::new("kill");
            kill.args(["-s", signal, &self.pid.to_string()]);
            // It may have ended meanwhile.
            let _ = command::run(&mut kill).await;
        }
    }

    /// Kills it and waits for its end.
    async fn end(self) -> Result<(), Error> {
        self.signal("KILL").await;
        let what = format!("the end of process {}", self.pid);
        let gone = async || (!self.is_alive()).then_some(());
        command::wait_for(&what, command::STEP, gone).await
    }
}

/// Who holds a place.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Owner {
    /// The process that started the cluster and ends it.
    pub supervisor: Process,
    /// The first process in the cluster's namespaces: its end is theirs.
    pub holder: Option<Process>,
    /// The name of a cluster that stays until `cluster down`; one without ends when
    /// its supervisor's standard input closes.
    pub kept: Option<String>,
}

/// A place that is taken.
#[derive(Clone, Debug)]
pub struct Place {
    number: u8,
    folder: PathBuf,
}

impl Place {
    /// Clears up after dead owners, then takes the first free place.
    ///
    /// # Errors
    /// When no place is free or the folders cannot be written.
    pub async fn claim(kept: Option<String>) -> Result<(Self, Owner), Error> {
        let _lock = Lock::take()?;
        sweep().await;
        let pid = std::process::id();
        let supervisor = Process::of(pid).ok_or_else(|| Error::Supervisor("no /proc".into()))?;
        let owner = Owner {
            supervisor,
            holder: None,
            kept,
        };
        for number in 0..PLACES {
            let place = Self::numbered(number);
            match fs::create_dir(&place.folder) {
                Ok(()) => {
                    place.note(&owner)?;
                    return Ok((place, owner));
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::file("make the folder", &place.folder)(error)),
            }
        }
        Err(Error::Full(PLACES))
    }

    fn numbered(number: u8) -> Self {
        let folder = Path::new(ROOT).join(number.to_string());
        Self { number, folder }
    }

    /// The folder for small files: configuration, credentials, logs.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The addresses that belong to the place.
    #[must_use]
    pub fn network(&self) -> Network {
        Network::new(self.number)
    }

    /// The cgroup of the place's Pods.
    #[must_use]
    pub fn cgroup(&self) -> Cgroup {
        Cgroup::new(self.number)
    }

    /// Who holds it; nothing when the note is missing or was cut short.
    #[must_use]
    pub fn owner(&self) -> Option<Owner> {
        let text = fs::read(self.folder.join(OWNER)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Writes down who holds it. A sweep may read meanwhile, and takes a place
    /// whose note it cannot read for one that nobody holds: it finds the note of
    /// before or the new one, whole.
    pub(super) fn note(&self, owner: &Owner) -> Result<(), Error> {
        let path = self.folder.join(OWNER);
        let beside = path.with_extension("new");
        let text = serde_json::to_vec(owner).unwrap_or_default();
        fs::write(&beside, text).map_err(Error::file("write", &beside))?;
        fs::rename(beside, &path).map_err(Error::file("write", path))
    }

    /// Ends what runs there, takes everything away and leaves the place to others.
    ///
    /// # Errors
    /// When something would not go; the place then stays taken, and the next
    /// sweep tries again.
    pub async fn give_back(&self, holder: Option<Process>) -> Result<(), Error> {
        if let Some(holder) = holder {
            // What takes longest, before others have to wait.
            holder.end().await?;
        }
        // A place that is half taken away looks like one of a dead owner.
        let _lock = Lock::take()?;
        self.clear(holder).await?;
        // The last one out: it fails as long as another cluster is there.
        let _ = fs::remove_dir(ROOT);
        Ok(())
    }

    /// Ends what runs there and takes everything away; needs the lock.
    async fn clear(&self, holder: Option<Process>) -> Result<(), Error> {
        if let Some(holder) = holder {
            holder.end().await?;
        }
        self.network().disconnect().await;
        self.cgroup().remove().await?;
        fs::remove_dir_all(&self.folder).map_err(Error::file("remove", &self.folder))
    }
}

/// All places that are taken, whoever holds them.
#[must_use]
pub fn all() -> Vec<Place> {
    let mut numbers: Vec<u8> = fs::read_dir(ROOT)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers.into_iter().map(Place::numbered).collect()
}

/// Clears every place whose supervisor is dead.
async fn sweep() {
    for place in all() {
        let owner = place.owner();
        if owner
            .as_ref()
            .is_some_and(|owner| owner.supervisor.is_alive())
        {
            continue;
        }
        if let Err(error) = place.clear(owner.and_then(|owner| owner.holder)).await {
            tracing::warn!(place = place.number, error = error.chain(), "not cleared");
        }
    }
}

/// Clears every place whose supervisor is dead, for people.
///
/// # Errors
/// When the folder of the places cannot be opened.
pub async fn clear_dead() -> Result<(), Error> {
    if Path::new(ROOT).exists() {
        let _lock = Lock::take()?;
        sweep().await;
        let _ = fs::remove_dir(ROOT);
    }
    Ok(())
}

/// The right to take and to clear places, one process at a time.
struct Lock(#[expect(dead_code, reason = "held until it is dropped")] File);

impl Lock {
    /// The lock is on the folder itself, so that no file of it stays. Whoever
    /// waited for it while the folder was removed has locked a ghost.
    fn take() -> Result<Self, Error> {
        loop {
            match DirBuilder::new().mode(0o755).create(ROOT) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Error::file("make the folder", ROOT)(error));
                }
                _ => {}
            }
            let Ok(file) = File::open(ROOT) else { continue };
            file.lock().map_err(Error::file("lock", ROOT))?;
            let found = file.metadata().map_err(Error::file("look at", ROOT))?;
            if found.uid() != 0 {
                let source = io::Error::from(io::ErrorKind::PermissionDenied);
                return Err(Error::file("use what another user made:", ROOT)(source));
            }
            if found.nlink() > 0 && found.ino() == inode(ROOT) {
                return Ok(Self(file));
            }
        }
    }
}

fn inode(path: &str) -> u64 {
    fs::metadata(path).map(|found| found.ino()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_number_and_its_start() {
        let this = Process::of(std::process::id()).expect("this process");
        assert!(this.is_alive());
        let earlier = Process {
            started: this.started - 1,
            ..this
        };
        assert!(!earlier.is_alive(), "the number was given again");
        assert_eq!(Process::of(u32::MAX), None);
    }

    fn place_in(folder: &Path) -> (Place, Owner) {
        let place = Place {
            number: 0,
            folder: folder.to_owned(),
        };
        let owner = Owner {
            supervisor: Process::of(std::process::id()).expect("this process"),
            holder: None,
            kept: None,
        };
        (place, owner)
    }

    #[test]
    fn a_note_that_was_cut_short_has_no_owner() {
        let folder = tempfile::tempdir().expect("a folder");
        let (place, owner) = place_in(folder.path());
        assert!(place.owner().is_none());
        place.note(&owner).expect("a note");
        assert_eq!(
            place.owner().map(|found| found.supervisor),
            Some(owner.supervisor)
        );
        let note = folder.path().join(OWNER);
        let text = fs::read(&note).expect("the note");
        fs::write(&note, &text[..text.len() / 2]).expect("a cut");
        assert!(place.owner().is_none());
    }

    #[test]
    fn whoever_reads_a_note_that_is_written_anew_reads_a_whole_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let (place, owner) = place_in(folder.path());
        place.note(&owner).expect("a note");
        let before = fs::read(folder.path().join(OWNER)).expect("the note");
        let mut reader = File::open(folder.path().join(OWNER)).expect("the note");
        let kept = Some("later".to_owned());
        place.note(&Owner { kept, ..owner }).expect("another");
        let mut read = Vec::new();
        io::Read::read_to_end(&mut reader, &mut read).expect("a read");
        assert_eq!(read, before, "it has the file of before");
        let found = place.owner().expect("an owner");
        assert_eq!(found.kept.as_deref(), Some("later"));
    }
}
