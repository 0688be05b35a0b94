//! The wire format of LLaVA's own controller and workers, kept for its clients.
//! Source: `llava/serve/{controller,model_worker}.py` and `llava/utils.py`.

use serde::{Deserialize, Serialize};

/// What LLaVA's clients show when `error_code` is not 0. They compare nothing
/// with it, so it may be followed by the true cause.
pub const SERVER_ERROR: &str =
    "**NETWORK ERROR DUE TO HIGH TRAFFIC. PLEASE REGENERATE OR REFRESH THIS PAGE.**";

/// Appended to the prompt when no room for an answer is left; `error_code` 0.
pub const EXCEEDS_LENGTH: &str =
    "Exceeds max token length. Please start a new conversation, thanks.";

/// `error_code` in a [`Chunk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Code {
    /// All is well.
    Ok = 0,
    /// The worker failed.
    Worker = 1,
    /// No worker serves the model.
    NoWorker = 2,
    /// The worker could not be reached, or broke off.
    Unreachable = 3,
}

/// One NUL-terminated frame of `/worker_generate_stream`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// The prompt and everything generated so far, or the error.
    pub text: String,
    /// See [`Code`].
    pub error_code: u8,
}

/// The answer to `/worker_get_status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Models by the names that clients ask for.
    pub model_names: Vec<String>,
    /// Relative speed; 1 for every worker of LLaVA's own.
    pub speed: u32,
    /// Running and waiting requests.
    pub queue_length: u32,
}
