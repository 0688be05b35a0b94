//! Where the tokens of an answer begin in its text.

use crate::engine::Decoder;

/// Follows one answer, token by token.
#[derive(Clone, Debug, Default)]
pub(super) struct Offset {
    /// Characters of the text that have begun.
    begun: usize,
    /// Whether a token has added to the text.
    spoke: bool,
}

impl Offset {
    /// Of an answer behind an echo of so many characters.
    #[must_use]
    pub(super) fn behind(characters: usize) -> Self {
        Self {
            begun: characters,
            spoke: false,
        }
    }

    /// The character in which `token` begins, which stands for `bytes`.
    pub(super) fn next(&mut self, decoder: &Decoder, token: u32, bytes: &[u8]) -> usize {
        // Special tokens have a name and no place in the text.
        if decoder.piece(token) == Some("") {
            return self.begun;
        }
        let mut bytes = bytes;
        // SentencePiece drops the space before the first word.
        if !self.spoke && !decoder.text(&[token]).starts_with(' ') {
            bytes = bytes.strip_prefix(b" ").unwrap_or(bytes);
        }
        self.spoke = true;
        let inside = bytes.first().is_some_and(|byte| continues(*byte));
        let offset = self.begun.saturating_sub(usize::from(inside));
        self.begun += bytes.iter().filter(|byte| !continues(**byte)).count();
        offset
    }
}

/// Whether a byte is one of a character's after its first.
fn continues(byte: u8) -> bool {
    byte & 0xc0 == 0x80
}
