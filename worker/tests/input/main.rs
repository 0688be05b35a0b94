//! What goes into a model, compared with what Pillow, transformers and LLaVA
//! make of the same pictures and messages. The fixtures come from `tests/reference`.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

mod checkpoint;
mod inspect;
mod picture_files;
mod pixels;
mod prompts;
mod token_counts;

use std::path::PathBuf;

/// A file or folder under `tests/fixtures`.
fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures")
        .join(name)
}
