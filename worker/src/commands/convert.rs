//! `convert`: a checkpoint in another form.

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::convert::{
    ConvertError, Layout, Progress, Target, apply_delta, checkpoint, make_delta,
    pickles_to_safetensors,
};
use crate::weights::Kind;

/// Writes a checkpoint in another form, in a new folder. Without further flags: pickled
/// weights (*.bin) as safetensors.
#[derive(Debug, Args)]
pub(super) struct ConvertArgs {
    /// Folder of the checkpoint.
    dir: PathBuf,
    /// Folder to write; it must not exist.
    #[arg(long)]
    out: PathBuf,
    /// Layout to write it in.
    #[arg(long)]
    layout: Option<Layout>,
    /// Element type to round its weights to.
    #[arg(long)]
    dtype: Option<Dtype>,
    /// Language model to merge a LoRA or projector-only checkpoint into.
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    /// Folder of the vision tower, for a checkpoint that only names it.
    #[arg(long, value_name = "DIR")]
    vision_tower: Option<PathBuf>,
    /// Base to add a delta to (LLaVA's `apply_delta`).
    #[arg(long, value_name = "DIR", conflicts_with_all = ["layout", "dtype", "base", "vision_tower"])]
    apply_delta_to: Option<PathBuf>,
    /// Base to take away, for a delta (LLaVA's `make_delta`).
    #[arg(long, value_name = "DIR", conflicts_with_all = ["layout", "dtype", "base", "vision_tower", "apply_delta_to"])]
    make_delta_from: Option<PathBuf>,
}

/// Element types of weights.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Dtype {
    F32,
    F16,
    Bf16,
}

impl ConvertArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let percent = Cell::new(None);
        let hear = |progress: &Progress| show(progress, &percent);
        let left_out = self.convert(&hear);
        if percent.get().is_some() && std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
        for what in left_out? {
            eprintln!("left out: {what}");
        }
        Ok(())
    }

    /// Converts; gives what was left out.
    fn convert(&self, hear: &dyn Fn(&Progress)) -> Result<Vec<String>, ConvertError> {
        let (dir, out) = (&self.dir, &self.out);
        if let Some(base) = &self.apply_delta_to {
            return apply_delta(dir, base, out, hear).map(|()| Vec::new());
        }
        if let Some(base) = &self.make_delta_from {
            return make_delta(dir, base, out, hear).map(|()| Vec::new());
        }
        let target = Target {
            layout: self.layout,
            kind: self.dtype.map(|dtype| match dtype {
                Dtype::F32 => Kind::F32,
                Dtype::F16 => Kind::F16,
                Dtype::Bf16 => Kind::BF16,
            }),
            base: self.base.clone(),
            vision_tower: self.vision_tower.clone(),
        };
        if target.layout.is_some() || target.kind.is_some() || target.base.is_some() {
            return checkpoint(dir, out, &target, hear);
        }
        let skipped = pickles_to_safetensors(dir, out, hear)?;
        Ok(skipped
            .iter()
            .map(|skipped| format!("{}: {}", skipped.file.display(), skipped.what))
            .collect())
    }
}

/// A line for each file, and its progress where somebody watches.
fn show(progress: &Progress, shown: &Cell<Option<usize>>) {
    let mut out = std::io::stderr().lock();
    let percent = progress.done * 100 / progress.total.max(1);
    // A progress line that cannot be written is no reason to stop.
    let _ = if !out.is_terminal() {
        match shown.replace(Some(percent)) {
            Some(last) if last / 10 == percent / 10 => Ok(()),
            _ => writeln!(out, "writing {}: {percent} %", progress.file),
        }
    } else if shown.replace(Some(percent)) != Some(percent) {
        write!(out, "\r\x1b[Kwriting {}: {percent} %", progress.file).and_then(|()| out.flush())
    } else {
        Ok(())
    };
}
