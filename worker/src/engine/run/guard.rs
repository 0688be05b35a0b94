//! The net under the model and the tokenizer: what fails or panics there costs
//! the request at hand and not the engine.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error_text::chain;
use crate::model::ForwardError;

/// Runs what may fail or panic; the text says what happened, for the log.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, ForwardError>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(chain(&error)),
        Err(panic) => Err(match panic.downcast_ref::<&str>() {
            Some(text) => format!("panic: {text}"),
            None => "panic".to_owned(),
        }),
    }
}
