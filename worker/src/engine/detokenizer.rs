//! Text out of tokens, piece by piece: what is given out never changes
//! afterwards and never ends inside a character.

use std::sync::Arc;

/// Turns tokens into text, special ones left out.
pub type Decode = Arc<dyn Fn(&[u32]) -> String + Send + Sync>;

/// Tokens before the new ones that are decoded with them, because a
/// tokenizer may treat the first one differently (SentencePiece drops its space).
const CONTEXT: usize = 6;

/// Stands for bytes that are no whole character yet.
const BROKEN: char = '\u{fffd}';

/// A broken character longer than this many tokens stays broken: no character
/// takes more bytes, and no text may be held back for ever.
const LONGEST_CHARACTER: usize = 8;

/// The text of one growing answer.
#[derive(Clone)]
pub struct Detokenizer {
    decode: Decode,
    tokens: Vec<u32>,
    /// Where decoding starts.
    from: usize,
    /// Tokens whose text has been given out.
    given: usize,
}

impl std::fmt::Debug for Detokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Detokenizer")
            .field("tokens", &self.tokens.len())
            .finish_non_exhaustive()
    }
}

impl Detokenizer {
    /// Nothing yet.
    #[must_use]
    pub fn new(decode: Decode) -> Self {
        Self {
            decode,
            tokens: Vec::new(),
            from: 0,
            given: 0,
        }
    }

    /// Adds a token; gives the text that is certain now.
    pub fn push(&mut self, token: u32) -> String {
        self.tokens.push(token);
        let text = self.new_text();
        if text.ends_with(BROKEN) && self.tokens.len() - self.given < LONGEST_CHARACTER {
            return String::new();
        }
        self.given = self.tokens.len();
        self.from = self.given.saturating_sub(CONTEXT).max(self.from);
        text
    }

    /// What is left at the end, broken characters included.
    pub fn finish(&mut self) -> String {
        let text = self.new_text();
        self.given = self.tokens.len();
        text
    }

    /// The text after what was given out. Both decodings start at the same
    /// token, so what the tokenizer does to the first word cancels out.
    fn new_text(&self) -> String {
        let before = (self.decode)(&self.tokens[self.from..self.given]);
        let all = (self.decode)(&self.tokens[self.from..]);
        match all.strip_prefix(before.as_str()) {
            Some(new) => new.to_owned(),
            None => all.chars().skip(before.chars().count()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One token a byte, and a first space dropped as SentencePiece does.
    fn bytes() -> Decode {
        Arc::new(|tokens| {
            let bytes: Vec<u8> = tokens.iter().map(|&token| token as u8).collect();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            text.strip_prefix(' ').map(str::to_owned).unwrap_or(text)
        })
    }

    proptest! {
        #[test]
        fn pieces_are_whole_characters_and_add_up(text in "[ aé漢🦙]{0,20}") {
            let mut detokenizer = Detokenizer::new(bytes());
            let mut seen = String::new();
            for byte in text.bytes() {
                let piece = detokenizer.push(byte.into());
                prop_assert!(!piece.contains(BROKEN));
                seen += &piece;
            }
            seen += &detokenizer.finish();
            prop_assert_eq!(seen.as_str(), text.strip_prefix(' ').unwrap_or(&text));
        }

        #[test]
        fn broken_bytes_hold_nothing_back_for_ever(tokens in prop::collection::vec(128u32..256, 1..60)) {
            let mut detokenizer = Detokenizer::new(bytes());
            let mut silent = 0;
            for token in tokens {
                silent = if detokenizer.push(token).is_empty() { silent + 1 } else { 0 };
                // Bytes that complete what was given out as broken add no text of their own.
                prop_assert!(silent < 2 * LONGEST_CHARACTER);
            }
        }
    }
}
