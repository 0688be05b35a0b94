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

    /// Bytes of one token, special or not; they may be a part of a character.
    fn token(&self, token: u32) -> Vec<u8>;
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

    fn token(&self, token: u32) -> Vec<u8> {
        match self.decoder.piece(token) {
            // Special tokens add nothing to a text, and are named here all the same.
            Some(piece) if !piece.is_empty() => piece.as_bytes().to_vec(),
            _ => self.renderer.tokenizer().bytes(token),
        }
    }
}

/// A token's bytes where a text is needed; a part of a character as OpenAI writes it, `bytes:\xe6`.
#[must_use]
pub(super) fn written(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => format!("bytes:{}", bytes.escape_ascii()),
    }
}

#[cfg(test)]
impl CheckpointTexts {
    /// Those of the demo checkpoint, whose tokenizer is SentencePiece's.
    pub(super) fn demo() -> Self {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let dir = root.join("../models/llava-shapes");
        let model = crate::config::ModelConfig::read(&dir, None).unwrap();
        let renderer = PromptRenderer::from_checkpoint(&dir, &model, None).unwrap();
        Self::new(renderer, model.text.vocab)
    }

    /// Tokens of a text.
    pub(super) fn ids(&self, text: &str) -> Vec<u32> {
        let tokenizer = self.renderer.tokenizer().inner();
        tokenizer.encode(text, false).unwrap().get_ids().to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_keep_the_bytes_that_a_decoder_of_one_token_loses() {
        let texts = CheckpointTexts::demo();
        let text = "The red circle, 漢 and\n  🦙";
        let bytes: Vec<_> = texts
            .ids(text)
            .into_iter()
            .map(|id| texts.token(id))
            .collect();
        assert_eq!(bytes.concat(), format!(" {text}").into_bytes());
        let written: Vec<_> = bytes.iter().map(|bytes| written(bytes)).collect();
        assert_eq!(written[0], " The");
        for part in ["bytes:\\xe6", "bytes:\\xbc", "bytes:\\xa2"] {
            assert!(written.iter().any(|text| text == part), "{part}");
        }
        let end = texts.renderer.tokenizer().inner().token_to_id("</s>");
        assert_eq!(texts.token(end.unwrap()), b"</s>");
        assert_eq!(texts.token(10_000), b"", "an id beyond the vocabulary");
    }
}
