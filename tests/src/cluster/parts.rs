//! The programs that a cluster is made of, built once into a cache.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::Command;

use super::{command, error::Error};

/// The folder with the modules, scripts and manifests of the cluster.
pub(super) const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster");

/// Where the programs of a cluster lie.
#[derive(Clone, Debug)]
pub struct Parts {
    folders: Vec<PathBuf>,
}

impl Parts {
    /// Builds what is missing for these levels, by their names in
    /// `tests/cluster/build`; another build under way is waited for.
    ///
    /// # Errors
    /// When a part cannot be built.
    pub async fn of(levels: &[&str]) -> Result<Self, Error> {
        let printed = command::run(&mut Self::build(levels)).await?;
        Ok(Self {
            folders: printed.trim().split(':').map(PathBuf::from).collect(),
        })
    }

    /// Builds what is missing, and tells of it on standard error as it goes.
    ///
    /// # Errors
    /// When a part cannot be built.
    pub async fn build_visibly(levels: &[&str]) -> Result<(), Error> {
        let mut build = Self::build(levels);
        let line = command::display(&build);
        let status = build.stdout(Stdio::null()).status().await;
        let status = status.map_err(|source| Error::Start {
            command: line.clone(),
            source,
        })?;
        if status.success() {
            return Ok(());
        }
        Err(Error::Command {
            command: line,
            status,
            output: "what it said is above".into(),
        })
    }

    fn build(levels: &[&str]) -> Command {
        let mut build = Command::new(Path::new(SOURCES).join("build"));
        build.args(levels);
        build
    }

    /// What a `PATH` needs so that programs find their helpers.
    pub(super) fn search_path(&self) -> OsString {
        let system = std::env::var_os("PATH").unwrap_or_default();
        let all = self.folders.iter().cloned();
        std::env::join_paths(all.chain(std::env::split_paths(&system))).unwrap_or(system)
    }

    /// The path of a program or file of these parts.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folders
            .iter()
            .map(|folder| folder.join(name))
            .find(|path| path.exists())
            .unwrap_or_else(|| PathBuf::from(name))
    }
}
