//! Serving: HTTP in front of the engine, and the life of the process around it.

mod addresses;
mod app;
mod args;
mod arrival;
mod ask;
mod blocking;
mod body;
mod buffers;
mod chat;
mod completions;
mod connection;
mod gate;
mod images;
mod info;
mod lease;
#[cfg(test)]
mod leaving;
mod life;
mod limits;
mod llava;
mod loading;
mod memory;
mod metrics;
mod refusal;
mod remote;
mod reply;
mod sampling;
mod status;
mod stream;
mod texts;

pub use args::ServeArgs;
pub use life::{ServeError, run, write_termination_log};
