//! Serving: HTTP in front of the engine, and the life of the process around it.

mod app;
mod args;
mod ask;
mod body;
mod chat;
mod completions;
mod connection;
mod gate;
mod images;
mod info;
mod lease;
mod life;
mod limits;
mod llava;
mod loading;
mod memory;
mod metrics;
mod refusal;
mod remote;
mod sampling;
mod status;
mod stream;
mod texts;

pub use args::ServeArgs;
pub use life::{ServeError, run, write_termination_log};

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
