//! Logs on standard error: text for people, JSON lines for programs.

use std::io::IsTerminal;

use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One line for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging for the process. `filter` has the syntax of
/// [`EnvFilter`], such as `info,llava_router=debug`.
///
/// # Errors
/// When the filter does not parse.
pub fn init(filter: &str, format: Format) -> Result<(), InvalidFilter> {
    let filter = EnvFilter::try_new(filter).map_err(|error| InvalidFilter {
        filter: filter.to_owned(),
        error: error.to_string(),
    })?;
    let registry = tracing_subscriber::registry().with(filter);
    // A second call (tests) keeps the first subscriber.
    let _ = match format {
        Format::Text => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .with_ansi(colours())
                    .with_writer(std::io::stderr),
            )
            .try_init(),
        Format::Json => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_writer(std::io::stderr),
            )
            .try_init(),
    };
    Ok(())
}

/// Whether lines may have colours: a file or a pipe would keep their escape codes.
fn colours() -> bool {
    let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    wanted && std::io::stderr().is_terminal()
}

/// The log filter does not parse.
#[derive(Debug, thiserror::Error)]
#[error("--log-filter `{filter}`: {error}; write it like `info` or `info,llava_router=debug`")]
pub struct InvalidFilter {
    filter: String,
    error: String,
}
