//! `fetch`: brings a checkpoint into the cache and prints where it lies.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;

use clap::Args;

use crate::fetch::{Event, Fetcher, Progress, Source};

/// Fetches a checkpoint: hf://owner/name[@revision], s3://, gs:// or az://bucket/path, or one file by https://…#sha256=….
#[derive(Debug, Args)]
pub(super) struct FetchArgs {
    /// Where it comes from.
    source: Source,
    /// Where fetched files are kept.
    #[arg(long, value_name = "DIR", env = "LLAVA_CACHE", default_value = "cache")]
    cache_dir: PathBuf,
    /// The hub to ask.
    #[arg(
        long,
        value_name = "URL",
        env = "HF_ENDPOINT",
        default_value = "https://huggingface.co"
    )]
    endpoint: String,
}

impl FetchArgs {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let token = std::env::var("HF_TOKEN")
            .ok()
            .filter(|token| !token.is_empty());
        let fetcher = Fetcher::new(&self.cache_dir, &self.endpoint, token)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let path = runtime.block_on(fetcher.resolve(&self.source, &|event| match event {
            Event::Progress(progress) => show(&progress),
            Event::Cached { why, path } => {
                eprintln!("{why}\nwhat was fetched before is used: {}", path.display());
            }
        }))?;
        writeln!(std::io::stdout(), "{}", path.display())?;
        Ok(())
    }
}

/// One line that is written over; nothing where nobody watches.
fn show(progress: &Progress) {
    let mut out = std::io::stderr().lock();
    if !out.is_terminal() {
        return;
    }
    let total = progress
        .total
        .map(|total| format!(" of {} MB", total / 1_000_000))
        .unwrap_or_default();
    let done = progress.done / 1_000_000;
    let end = if progress.total == Some(progress.done) {
        "\n"
    } else {
        ""
    };
    // A progress line that cannot be written is no reason to stop.
    let _ = write!(out, "\r\x1b[K{}: {done}{total}{end}", progress.file);
}
