//! Promises about models, tested on the small checkpoints in
//! `tests/fixtures/models`, which `tests/reference/models.py` makes.

mod batch;
mod damage;
mod overlay;
mod quantised;
mod reference;
pub(crate) mod speaker;
pub(crate) mod vocabulary;
