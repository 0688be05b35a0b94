//! Text out of tokens, piece by piece: what is given out never changes
//! afterwards and never ends inside a character.

use super::decoder::{BROKEN, Decode};

/// Tokens before the new ones that are decoded with them, because a
/// tokenizer may treat the first one differently (SentencePiece drops its space).
const CONTEXT: usize = 6;

/// A broken character longer than this many tokens stays broken: no character
/// takes more bytes, and no text may be held back for ever.
const LONGEST_CHARACTER: usize = 8;

/// The text of one growing answer.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    decode: Decode,
    tokens: Vec<u32>,
    /// Where decoding starts.
    from: usize,
    /// Tokens whose text has been given out.
    given: usize,
    /// Whether any of it was more than nothing: tokenizers treat the first word differently.
    spoke: bool,
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
            spoke: false,
        }
    }

    /// Adds a token; gives the text that is certain now.
    pub fn push(&mut self, token: u32) -> String {
        let whole = self.spoke && self.given == self.tokens.len();
        self.tokens.push(token);
        let text = match self.decode.piece(token) {
            Some(piece) if whole => piece.to_owned(),
            _ => self.new_text(),
        };
        if text.ends_with(BROKEN) && self.tokens.len() - self.given < LONGEST_CHARACTER {
            return String::new();
        }
        self.given = self.tokens.len();
        self.from = self.given.saturating_sub(CONTEXT).max(self.from);
        self.spoke |= !text.is_empty();
        text
    }

    /// What is left at the end, broken characters included.
    pub fn finish(&mut self) -> String {
        if self.given == self.tokens.len() {
            return String::new();
        }
        let text = self.new_text();
        self.given = self.tokens.len();
        text
    }

    /// The text after what was given out. Both decodings start at the same
    /// token, so what the tokenizer does to the first word cancels out.
    fn new_text(&self) -> String {
        let before = self.decode.text(&self.tokens[self.from..self.given]);
        let all = self.decode.text(&self.tokens[self.from..]);
        match all.strip_prefix(before.as_str()) {
            Some(new) => new.to_owned(),
            None => all.chars().skip(before.chars().count()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::super::decoder::Decoder;
    use super::*;
    use crate::tokenize::TextTokenizer;

    /// One token a byte, and a first space dropped as SentencePiece does.
    fn bytes() -> Decode {
        Arc::new(Decoder::new(256, |tokens| {
            let bytes: Vec<u8> = tokens.iter().map(|&token| token as u8).collect();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            text.strip_prefix(' ').map(str::to_owned).unwrap_or(text)
        }))
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

    #[test]
    fn remembered_pieces_are_what_the_tokenizer_makes_of_them_in_place() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for dir in [
            "models/llava-shapes",
            "tests/fixtures/prompts/llama",
            "tests/fixtures/prompts/hf",
            "tests/fixtures/prompts/hf_legacy",
            "tests/fixtures/prompts/qwen",
        ] {
            let tokenizer = TextTokenizer::from_checkpoint(&root.join(dir)).unwrap();
            let tokenizer = Arc::new(tokenizer.inner().clone());
            let vocab = tokenizer.get_vocab_size(true);
            let decoder = |remembers: usize| {
                let tokenizer = Arc::clone(&tokenizer);
                let text = move |ids: &[u32]| tokenizer.decode(ids, true).unwrap_or_default();
                Arc::new(Decoder::new(remembers, text))
            };
            let (quick, plain) = (decoder(vocab), decoder(0));
            let text = "The red circle, 漢字 and 🦙; it's  \"two\" lines.\n\nYes";
            let encoded = tokenizer.encode(text, false).unwrap();
            let mut sequences = vec![encoded.get_ids().to_vec()];
            let mut state = 1u64;
            for _ in 0..100 {
                let tokens = (0..40).map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    (state >> 33) as u32 % vocab as u32
                });
                sequences.push(tokens.collect());
            }
            for tokens in sequences {
                let mut ours = Detokenizer::new(Arc::clone(&quick));
                let mut theirs = Detokenizer::new(Arc::clone(&plain));
                for token in tokens {
                    assert_eq!(ours.push(token), theirs.push(token), "{dir}: token {token}");
                }
                assert_eq!(ours.finish(), theirs.finish(), "{dir}");
            }
            let known = (0..vocab as u32).filter(|token| quick.piece(*token).is_some());
            assert!(known.count() * 2 > vocab, "{dir}");
        }
    }
}
