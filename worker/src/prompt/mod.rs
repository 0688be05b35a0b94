//! From chat messages to what the model reads: rendered text, token ids and
//! image slots. What the user wrote can never become a special token, another
//! role or an image slot.

mod chat_template;
mod conversation;
pub(crate) mod markup;
mod message;
mod renderer;
mod template;
mod template_guard;
mod template_text;

pub use chat_template::ChatTemplateError;
pub use conversation::ConversationError;
pub use message::{Content, Message, Part, Role};
pub(crate) use renderer::template_for;
pub use renderer::{PromptError, PromptRenderer, render_text};
pub use template::{Style, Template};

/// A prompt ready for the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The rendered text, image slots shown as `<image>`.
    pub text: String,
    /// Token runs and image slots in order; every image has exactly one slot.
    pub pieces: Vec<Piece>,
    /// Texts that end the answer; none of them belongs to it.
    pub stop: Vec<String>,
}

/// One piece of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Token ids of text between image slots; the first run starts with the BOS token where the model has one.
    Text(Vec<u32>),
    /// The slot of the request's image with this index.
    Image(usize),
}

impl Prompt {
    /// Tokens of the text alone, without those of the images.
    #[must_use]
    pub fn text_tokens(&self) -> usize {
        self.pieces
            .iter()
            .map(|piece| match piece {
                Piece::Text(ids) => ids.len(),
                Piece::Image(_) => 0,
            })
            .sum()
    }

    /// Number of image slots.
    #[must_use]
    pub fn images(&self) -> usize {
        self.pieces
            .iter()
            .filter(|piece| matches!(piece, Piece::Image(_)))
            .count()
    }
}
