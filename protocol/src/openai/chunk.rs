//! One event of a streamed chat.

use serde::{Deserialize, Serialize};

use super::answer::{ChatLogprobs, FinishReason, Usage};

/// One event. With usage asked for, every chunk carries `usage`: null, but in
/// the last one, which has no choices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatChunk {
    /// The same on every chunk.
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: String,
    /// Unix seconds, the same on every chunk.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// What is new.
    pub choices: Vec<ChunkChoice>,
    /// Absent unless asked for, then null until the last chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// What is new in one of `n` answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChunkChoice {
    /// Which of the `n`.
    pub index: u32,
    /// The new text.
    pub delta: Delta,
    /// Probabilities, if asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// Why the answer ended; on its last chunk only.
    pub finish_reason: Option<FinishReason>,
}

/// New text. The first of an answer names the role, the last is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// `assistant`, on the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The next piece of text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}
