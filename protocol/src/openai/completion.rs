//! The body of `POST /v1/completions`, and its answer. Its stream sends the
//! same shape, piece by piece.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::answer::{FinishReason, Usage};

/// What is asked; [`Options`](super::Options) holds the rest of the body.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompletionRequest {
    /// The text to continue.
    pub prompt: CompletionPrompt,
    /// How many alternatives to list for each token.
    #[serde(default)]
    pub logprobs: Option<u64>,
    /// Whether the prompt stands before the answer.
    #[serde(default)]
    pub echo: Option<bool>,
    /// Text that stands after the answer.
    #[serde(default)]
    pub suffix: Option<String>,
    /// Answers to choose among.
    #[serde(default)]
    pub best_of: Option<u64>,
}

/// One text, or a list that must hold one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a string")]
pub enum CompletionPrompt {
    /// One text.
    Text(String),
    /// A list of texts.
    Texts(Vec<String>),
    /// One text as token ids.
    Tokens(Vec<u32>),
}

/// A completion, or one chunk of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// The same on every chunk.
    pub id: String,
    /// `text_completion`.
    pub object: String,
    /// Unix seconds.
    pub created: u64,
    /// The model's name.
    pub model: String,
    /// The texts.
    pub choices: Vec<CompletionChoice>,
    /// Token counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// One text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CompletionChoice {
    /// The text, or its next piece.
    pub text: String,
    /// Which of the `n` answers.
    pub index: u32,
    /// Probabilities, if asked for.
    pub logprobs: Option<CompletionLogprobs>,
    /// Why the answer ended.
    pub finish_reason: Option<FinishReason>,
}

/// Probabilities in the form of the older API: one entry a token in each list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CompletionLogprobs {
    /// The tokens' texts.
    pub tokens: Vec<String>,
    /// Logarithms of their probabilities.
    pub token_logprobs: Vec<f32>,
    /// Alternatives.
    pub top_logprobs: Vec<BTreeMap<String, f32>>,
    /// Where each token begins in the text, in characters.
    pub text_offset: Vec<usize>,
}
