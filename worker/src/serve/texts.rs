//! What serving needs of a checkpoint's tokenizer and template.

use std::sync::Arc;

use crate::engine::{Decode, Decoder};
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

    /// From tokens to text.
    fn decoder(&self) -> Decode;

    /// Text of one token, special or not.
    fn token(&self, token: u32) -> String;
}

/// A checkpoint's own.
pub(super) struct CheckpointTexts {
    renderer: Arc<PromptRenderer>,
    decoder: Decode,
}

impl CheckpointTexts {
    /// Of a model with `vocab` tokens, padding included.
    #[must_use]
    pub(super) fn new(renderer: PromptRenderer, vocab: usize) -> Self {
        let renderer = Arc::new(renderer);
        let inner = Arc::clone(&renderer);
        // Ids come from the model, whose vocabulary was checked against the tokenizer's;
        // padding rows beyond it have no text.
        let text = move |tokens: &[u32]| {
            let text = inner.tokenizer().inner().decode(tokens, true);
            text.unwrap_or_default()
        };
        Self {
            renderer,
            decoder: Arc::new(Decoder::new(vocab, text)),
        }
    }
}

impl Texts for CheckpointTexts {
    fn chat(&self, messages: &[Message]) -> Result<Prompt, String> {
        self.renderer
            .render(messages)
            .map_err(|error| chain(&error))
    }

    fn rendered(&self, text: &str, images: usize) -> Result<Prompt, String> {
        self.renderer
            .rendered(text, images)
            .map_err(|error| chain(&error))
    }

    fn decoder(&self) -> Decode {
        Arc::clone(&self.decoder)
    }

    fn token(&self, token: u32) -> String {
        self.renderer
            .tokenizer()
            .inner()
            .decode(&[token], false)
            .unwrap_or_default()
    }
}
