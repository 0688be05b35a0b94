//! Why a cluster did not start, or did not do what a test asked of it.

use std::{path::PathBuf, time::Duration};

/// What was attempted, on what, and where to look.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder of the cluster.
    #[error("{what} {}", path.display())]
    File {
        /// The attempt: "write", "read", …
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A command could not be started.
    #[error("start `{command}`")]
    Start {
        /// The command line.
        command: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A command ended badly.
    #[error("`{command}` ended with {status}: {output}")]
    Command {
        /// The command line.
        command: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The end of what it printed.
        output: String,
    },
    /// A program of the cluster ended by itself while the cluster started.
    #[error("{program} ended while the cluster started; the end of its log:\n{log}")]
    Ended {
        /// The program.
        program: &'static str,
        /// The last lines of its log.
        log: String,
    },
    /// Something was still not true at its deadline.
    #[error("{what} did not come true within {} s", within.as_secs())]
    Late {
        /// What was waited for.
        what: String,
        /// How long.
        within: Duration,
    },
    /// The API server refused or could not be reached.
    #[error("{what}")]
    Api {
        /// The attempt.
        what: String,
        /// Why not.
        #[source]
        source: Box<kube::Error>,
    },
    /// A kubeconfig that cannot be used.
    #[error("read the kubeconfig {}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Box<kube::config::KubeconfigError>,
    },
    /// All places for clusters on this machine are taken.
    #[error(
        "{0} clusters run on this machine already: stop one with `make cluster-down`, or wait for tests to end"
    )]
    Full(u8),
    /// The supervisor of the cluster said why it gave up.
    #[error("the cluster's supervisor gave up: {0}")]
    Supervisor(String),
}

impl Error {
    /// An error on a file, for `map_err`.
    pub(super) fn file(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { what, path, source }
    }

    /// An error of the API server, for `map_err`.
    pub(super) fn api(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |source| Self::Api {
            what,
            source: Box::new(source),
        }
    }

    /// The whole chain in one line, for a process boundary.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            text = format!("{text}: {error}");
            source = error.source();
        }
        text
    }
}
