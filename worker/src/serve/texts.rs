//! What serving needs of a checkpoint's tokenizer and template.

use crate::error_text::chain;
use crate::prompt::{Message, Prompt, PromptRenderer};

/// Between text and tokens.
pub(super) trait Texts: Send + Sync + 'static {
    /// A conversation as the model reads it, the answer's opening included.
    ///
    /// # Errors
    /// What the template makes of the conversation, for the caller to read.
    fn chat(&self, messages: &[Message]) -> Result<Prompt, String>;

    /// A prompt that the caller has rendered: special tokens count, and each
    /// `<image>` is a slot for one of `images`.
    ///
    /// # Errors
    /// Why it cannot be tokenised.
    fn rendered(&self, text: &str, images: usize) -> Result<Prompt, String>;

    /// Text of tokens, special ones left out.
    fn decode(&self, tokens: &[u32]) -> String;

    /// Text of one token, special or not.
    fn token(&self, token: u32) -> String;
}

impl Texts for PromptRenderer {
    fn chat(&self, messages: &[Message]) -> Result<Prompt, String> {
        self.render(messages).map_err(|error| chain(&error))
    }

    fn rendered(&self, text: &str, images: usize) -> Result<Prompt, String> {
        PromptRenderer::rendered(self, text, images).map_err(|error| chain(&error))
    }

    fn decode(&self, tokens: &[u32]) -> String {
        // Ids come from the model, whose vocabulary was checked against the tokenizer's;
        // padding rows beyond it have no text.
        self.tokenizer()
            .inner()
            .decode(tokens, true)
            .unwrap_or_default()
    }

    fn token(&self, token: u32) -> String {
        self.tokenizer()
            .inner()
            .decode(&[token], false)
            .unwrap_or_default()
    }
}
