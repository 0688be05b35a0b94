//! The flags that every command with a model has, and loading with a line of
//! progress.

use crate::matmul::WeightFormat;
use crate::model::{DeviceChoice, LoadOptions, Model};
use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;

/// Which checkpoint to load and how.
#[derive(Debug, clap::Args)]
pub(super) struct ModelArgs {
    /// Folder of the checkpoint
    #[arg(long = "model", value_name = "DIR")]
    pub(super) dir: PathBuf,
    /// Folder of the language model under a LoRA or projector-only checkpoint
    #[arg(long, value_name = "DIR")]
    pub(super) base: Option<PathBuf>,
    /// Folder of the vision tower, where the checkpoint only names it
    #[arg(long, value_name = "DIR")]
    pub(super) vision_tower: Option<PathBuf>,
    /// Form in which the language model's weights are kept: none, int8 or int4
    #[arg(long = "quantization", value_name = "FORM", default_value_t)]
    pub(super) format: WeightFormat,
    /// Longest sequence in tokens [default: the checkpoint's]
    #[arg(long, value_name = "TOKENS")]
    pub(super) context: Option<usize>,
    /// Where to run: cpu, cuda or cuda:NUMBER
    #[arg(long, value_name = "DEVICE", default_value_t)]
    pub(super) device: DeviceChoice,
    /// Threads for the model [default: one for each processor]
    #[arg(long)]
    pub(super) threads: Option<usize>,
}

impl ModelArgs {
    /// The options that the flags mean.
    pub(super) fn options(&self) -> LoadOptions {
        LoadOptions {
            format: self.format,
            device: self.device,
            dtype: None,
            context: self.context,
            base: self.base.clone(),
            vision_tower: self.vision_tower.clone(),
            threads: self.threads,
        }
    }

    /// Loads the model; on a terminal, with a line that shows how far it is.
    ///
    /// # Errors
    /// See [`Model::load`].
    pub(super) fn load(&self) -> anyhow::Result<Model> {
        let terminal = std::io::stderr().is_terminal();
        let shown = Cell::new(-1i64);
        let progress = |share: f64| {
            let percent = (share * 100.0) as i64;
            if terminal && percent > shown.get() {
                shown.set(percent);
                eprint!("\rloading {} … {percent} %", self.dir.display());
                // A line that is not shown is no reason to stop.
                let _ = std::io::stderr().flush();
            }
        };
        let model = Model::load(&self.dir, &self.options(), &progress);
        if shown.get() >= 0 {
            eprint!("\r\x1b[K");
        }
        Ok(model?)
    }
}
