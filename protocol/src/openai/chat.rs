//! The body of `POST /v1/chat/completions`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What is asked; [`Options`](super::Options) holds the rest of the body.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatRequest {
    /// The conversation, oldest turn first.
    pub messages: Vec<ChatMessage>,
    /// Whether the logarithms of the chosen tokens' probabilities are wanted.
    #[serde(default)]
    pub logprobs: Option<bool>,
    /// How many alternatives to list for each token.
    #[serde(default)]
    pub top_logprobs: Option<u64>,
    /// Functions the model may call.
    #[serde(default)]
    pub tools: Option<Vec<Value>>,
    /// Which function to call.
    #[serde(default)]
    pub tool_choice: Option<Value>,
    /// A form that the answer must have.
    #[serde(default)]
    pub response_format: Option<Value>,
}

/// One turn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// Who speaks.
    pub role: String,
    /// What is said and shown.
    #[serde(default)]
    pub content: Option<ChatContent>,
}

/// Plain text, or text and images in any order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of content parts")]
pub enum ChatContent {
    /// Plain text.
    Text(String),
    /// Parts in order.
    Parts(Vec<ChatPart>),
}

/// One part of a turn. `kind` says which of the other fields counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ChatPart {
    /// `text` or `image_url`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text of a text part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Where the image of an image part is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_url: Option<ImageUrl>,
}

/// Where an image is: an object as OpenAI has it, or a bare string as many
/// clients send it. `detail` changes nothing here and may be missing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a string or an object with `url`")]
pub enum ImageUrl {
    /// Only the URL.
    Bare(String),
    /// An object with the URL.
    Object {
        /// A `data:` URI, or the address of a remote image.
        url: String,
    },
}

impl ImageUrl {
    /// The `data:` URI or address.
    #[must_use]
    pub fn into_url(self) -> String {
        match self {
            Self::Bare(url) | Self::Object { url } => url,
        }
    }
}

impl ChatRequest {
    /// Number of images in the conversation.
    #[must_use]
    pub fn images(&self) -> usize {
        let parts = |message: &ChatMessage| match &message.content {
            Some(ChatContent::Parts(parts)) => {
                parts.iter().filter(|part| part.image_url.is_some()).count()
            }
            _ => 0,
        };
        self.messages.iter().map(parts).sum()
    }
}
