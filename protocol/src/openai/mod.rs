//! The wire types of OpenAI's chat and completion API, as far as this project
//! speaks it. Readers are lenient where backends differ (bare image URLs,
//! missing detail, unknown fields); writers give exactly what the SDKs read.
//! Source: the OpenAPI document of the OpenAI API and openai-python's models.

mod answer;
mod chat;
mod chunk;
mod completion;
mod options;

pub use answer::{
    ChatChoice, ChatCompletion, ChatLogprobs, CompletionTokensDetails, FinishReason, Model,
    ModelList, PromptTokensDetails, ReplyMessage, TokenLogprob, TopLogprob, Usage,
};
pub use chat::{ChatContent, ChatMessage, ChatPart, ChatRequest, ImageUrl};
pub use chunk::{ChatChunk, ChunkChoice, Delta};
pub use completion::{
    Completion, CompletionChoice, CompletionLogprobs, CompletionPrompt, CompletionRequest,
};
pub use options::{Options, Stop, StreamOptions};
