//! Chat messages in the shape of OpenAI's API, as far as a prompt needs them:
//! who speaks, the text, and which image stands where.

use serde::{Deserialize, Serialize};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions that stand above the conversation.
    #[serde(alias = "developer")]
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The name in OpenAI's API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said and shown.
    pub content: Content,
}

/// Plain text, or text and images in any order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// Plain text.
    Text(String),
    /// Parts in order.
    Parts(Vec<Part>),
}

/// One part of a message. Where an image comes from is the request's business:
/// here it is the next one of the conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Part {
    /// Text as the user wrote it.
    Text {
        /// The text; nothing in it is markup.
        text: String,
    },
    /// An image; the n-th in the conversation takes the n-th image of the request.
    #[serde(alias = "image_url", alias = "input_image")]
    Image,
}

impl Message {
    /// A message of plain text.
    #[must_use]
    pub fn text(role: Role, text: impl Into<String>) -> Self {
        Self {
            role,
            content: Content::Text(text.into()),
        }
    }

    /// A message of several parts.
    #[must_use]
    pub fn parts(role: Role, parts: impl Into<Vec<Part>>) -> Self {
        Self {
            role,
            content: Content::Parts(parts.into()),
        }
    }

    /// Number of images in the message.
    #[must_use]
    pub fn images(&self) -> usize {
        match &self.content {
            Content::Text(_) => 0,
            Content::Parts(parts) => parts
                .iter()
                .filter(|part| matches!(part, Part::Image))
                .count(),
        }
    }
}

impl Part {
    /// A text part.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text { text: text.into() }
    }
}
