//! The cgroup under which the kubelet of a cluster puts its Pods. Namespaces do
//! not end cgroups, so they have a root of their own that can be found again.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{command, error::Error};

const MOUNT: &str = "/sys/fs/cgroup";

/// The root of one cluster's Pods, in every hierarchy.
#[derive(Clone, Debug)]
pub struct Cgroup {
    name: String,
}

impl Cgroup {
    /// The cgroup of a place.
    #[must_use]
    pub fn new(place: u8) -> Self {
        Self {
            name: format!("llava-test{place}"),
        }
    }

    /// Its path from the root of a hierarchy, as the kubelet wants it.
    #[must_use]
    pub fn path(&self) -> String {
        format!("/{}", self.name)
    }

    /// Its folders: one with cgroup v2, one per controller with v1.
    #[must_use]
    pub fn folders(&self) -> Vec<PathBuf> {
        hierarchies()
            .into_iter()
            .map(|hierarchy| hierarchy.join(&self.name))
            .collect()
    }

    pub(super) fn create(&self) -> Result<(), Error> {
        for folder in self.folders() {
            match fs::create_dir(&folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Error::file("make the cgroup", folder)(error));
                }
                _ => inherit_cpuset(&folder),
            }
        }
        Ok(())
    }

    /// Removes it with all below it. The kernel lets go of the last process of
    /// a cgroup a moment after its end.
    pub(super) async fn remove(&self) -> Result<(), Error> {
        for folder in self.folders() {
            let what = format!("the removal of the cgroup {}", folder.display());
            command::wait_for(&what, command::STEP, async || {
                remove_tree(&folder);
                (!folder.exists()).then_some(())
            })
            .await?;
        }
        Ok(())
    }
}

fn hierarchies() -> Vec<PathBuf> {
    let is_cgroup = |path: &PathBuf| path.join("cgroup.procs").exists();
    let root = PathBuf::from(MOUNT);
    if is_cgroup(&root) {
        return vec![root];
    }
    fs::read_dir(root)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(is_cgroup)
        .collect()
}

/// With v1 a new cpuset has no processors, and no process may enter it.
fn inherit_cpuset(folder: &Path) {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if let Some(value) = folder
            .parent()
            .and_then(|parent| fs::read_to_string(parent.join(file)).ok())
        {
            // Only the cpuset hierarchy of v1 has these at its root.
            let _ = fs::write(folder.join(file), value);
        }
    }
}

fn remove_tree(folder: &Path) {
    let inner = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_dir());
    for path in inner {
        remove_tree(&path);
    }
    // What stays busy is tried again by the caller.
    let _ = fs::remove_dir(folder);
}
