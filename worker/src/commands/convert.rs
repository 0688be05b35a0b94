//! `convert`: pickled weights to safetensors.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use crate::convert::pickles_to_safetensors;

/// Rewrites a checkpoint's pickled weights (*.bin) as safetensors, in a new folder.
#[derive(Debug, Args)]
pub(super) struct ConvertArgs {
    /// Folder of the checkpoint.
    dir: PathBuf,
    /// Folder to write; it must not exist.
    #[arg(long)]
    out: PathBuf,
}

impl ConvertArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        pickles_to_safetensors(&self.dir, &self.out, &|path| {
            // A progress line that cannot be written is no reason to stop.
            let _ = writeln!(std::io::stderr(), "converting {}", path.display());
        })?;
        Ok(())
    }
}
