//! Promises about models, tested on the small checkpoints in
//! `tests/fixtures/models`, which `tests/reference/models.py` makes.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

mod batch;
mod damage;
mod overlay;
mod quantised;
mod reference;
mod speaker;
mod vocabulary;
