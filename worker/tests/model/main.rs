//! Promises about checkpoints: reading, running, converting and fetching them, and the
//! commands that do so. One program, so that the worker is linked once for all.
//! `tests/reference` makes the fixtures.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

mod commands;
mod convert;
mod fetch;
mod input;
mod models;

use std::path::PathBuf;

/// A file or folder under `tests/fixtures`.
fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures")
        .join(name)
}
