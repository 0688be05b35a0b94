//! Reads a SentencePiece model (`tokenizer.model`, a protobuf message) and builds
//! the tokenizer that LLaMA's slow tokenizer is, as transformers' `LlamaConverter`
//! does. Only the few fields that decide about ids are read.

use std::collections::HashMap;

use serde_json::json;
use tokenizers::Tokenizer;
use tokenizers::tokenizer::AddedToken;

use super::files::SpecialTokens;

/// The character that stands for a space.
pub(super) const SPACE: &str = "\u{2581}";
/// Most pieces that a model may have.
const MOST_PIECES: usize = 1 << 20;
/// Longest piece in bytes; what every split of it takes grows with the square. Models are trained with pieces of 16
/// characters at most, runs of spaces and special tokens have some dozens.
const LONGEST_PIECE: usize = 256;

/// A SentencePiece model that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SentencePieceError {
    /// The bytes are no such message.
    #[error("the file is no SentencePiece model: it breaks off or goes wrong at byte {at}")]
    Damaged {
        /// Where.
        at: usize,
    },
    /// The model is of a kind that LLaVA's language models do not use.
    #[error(
        "the model has {what}, which is not supported: convert it to tokenizer.json with transformers"
    )]
    Unsupported {
        /// What it has.
        what: &'static str,
    },
    /// The library refuses what was built.
    #[error("build the tokenizer")]
    Build(#[source] tokenizers::Error),
}

/// What a piece is for; the numbers are the format's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

#[derive(Debug)]
struct Entry {
    text: String,
    score: f32,
    kind: Kind,
}

/// Which runs of text between special tokens start with a space of the tokenizer's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DummyPrefix {
    /// None, or the library's own steps see to it.
    Never,
    /// The first run of a text, unless a special token comes before it.
    FirstRun,
    /// Every run; the normalizer sees to it.
    EveryRun,
}

/// A model's pieces and the settings that matter.
#[derive(Debug)]
pub(super) struct SentencePiece {
    pieces: Vec<Entry>,
    byte_fallback: bool,
    dummy_prefix: bool,
}

impl SentencePiece {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, SentencePieceError> {
        let unsupported = |what| SentencePieceError::Unsupported { what };
        let mut model = Self {
            pieces: Vec::new(),
            byte_fallback: false,
            dummy_prefix: true,
        };
        let mut is_bpe = false;
        let mut keeps_spaces = false;
        let mut reader = Reader::new(bytes);
        while let Some((field, value)) = reader.field()? {
            match (field, value) {
                (1, Field::Bytes(piece)) => {
                    model.pieces.push(piece_of(piece)?);
                    if model.pieces.len() > MOST_PIECES {
                        return Err(unsupported("more than a million pieces"));
                    }
                }
                (2, Field::Bytes(trainer)) => {
                    let mut reader = Reader::new(trainer);
                    while let Some((field, value)) = reader.field()? {
                        match (field, value) {
                            (3, Field::Number(kind)) => is_bpe = kind == 2,
                            (35, Field::Number(flag)) => model.byte_fallback = flag != 0,
                            _ => {}
                        }
                    }
                }
                (3, Field::Bytes(normalizer)) => {
                    let mut reader = Reader::new(normalizer);
                    while let Some((field, value)) = reader.field()? {
                        match (field, value) {
                            (2, Field::Bytes(map)) if !map.is_empty() => {
                                return Err(unsupported("a table of character replacements"));
                            }
                            (3, Field::Number(flag)) => model.dummy_prefix = flag != 0,
                            (4, Field::Number(flag)) => keeps_spaces = flag == 0,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        if model.pieces.is_empty() {
            return Err(SentencePieceError::Damaged { at: bytes.len() });
        }
        if !is_bpe {
            return Err(unsupported("another algorithm than BPE"));
        }
        if !keeps_spaces {
            return Err(unsupported("removal of repeated spaces"));
        }
        Ok(model)
    }

    /// Where LLaMA's slow tokenizer puts the dummy space.
    pub(super) fn prefix(&self, special: &SpecialTokens) -> DummyPrefix {
        match (self.dummy_prefix, special.legacy) {
            (false, _) => DummyPrefix::Never,
            (true, true) => DummyPrefix::EveryRun,
            (true, false) => DummyPrefix::FirstRun,
        }
    }

    /// The same tokenizer for the `tokenizers` library.
    pub(super) fn tokenizer(
        &self,
        special: &SpecialTokens,
    ) -> Result<Tokenizer, SentencePieceError> {
        let unknown = self.pieces.iter().find(|piece| piece.kind == Kind::Unknown);
        let vocabulary: HashMap<&str, usize> = self
            .pieces
            .iter()
            .enumerate()
            .map(|(id, piece)| (piece.text.as_str(), id))
            .collect();
        let mut steps =
            vec![json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE })];
        if self.prefix(special) == DummyPrefix::EveryRun {
            steps.insert(0, json!({ "type": "Prepend", "prepend": SPACE }));
        }
        let built = json!({
            "version": "1.0",
            "added_tokens": [],
            "normalizer": { "type": "Sequence", "normalizers": steps },
            "pre_tokenizer": null,
            "post_processor": null,
            "decoder": { "type": "Sequence", "decoders": [
                { "type": "Replace", "pattern": { "String": SPACE }, "content": " " },
                { "type": "ByteFallback" },
                { "type": "Fuse" },
                { "type": "Strip", "content": " ", "start": 1, "stop": 0 },
            ]},
            "model": {
                "type": "BPE",
                "vocab": vocabulary,
                "merges": self.merges(&vocabulary),
                "unk_token": unknown.map(|piece| &piece.text),
                "fuse_unk": true,
                "byte_fallback": self.byte_fallback,
            },
        });
        let mut tokenizer: Tokenizer = serde_json::from_value(built)
            .map_err(|error| SentencePieceError::Build(error.into()))?;
        let own = self.pieces.iter().filter_map(|piece| match piece.kind {
            Kind::Control | Kind::Unknown => Some(AddedToken::from(piece.text.clone(), true)),
            Kind::UserDefined => {
                Some(AddedToken::from(piece.text.clone(), false).normalized(false))
            }
            Kind::Normal | Kind::Unused | Kind::Byte => None,
        });
        tokenizer
            .add_tokens(own)
            .map_err(SentencePieceError::Build)?;
        tokenizer
            .add_tokens(special.added.iter().map(|(_, token)| token.clone()))
            .map_err(SentencePieceError::Build)?;
        let bos = special.bos.clone().unwrap_or_else(|| "<s>".to_owned());
        if let Some(id) = tokenizer.token_to_id(&bos) {
            let processor = json!({
                "type": "TemplateProcessing",
                "single": [
                    { "SpecialToken": { "id": bos, "type_id": 0 } },
                    { "Sequence": { "id": "A", "type_id": 0 } },
                ],
                "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 0 } }],
                "special_tokens": { &bos: { "id": bos, "ids": [id], "tokens": [bos] } },
            });
            let processor: tokenizers::PostProcessorWrapper = serde_json::from_value(processor)
                .map_err(|error| SentencePieceError::Build(error.into()))?;
            tokenizer.with_post_processor(Some(processor));
        }
        Ok(tokenizer)
    }

    /// SentencePiece joins the pair whose union scores best; as ranked merges, that
    /// is every split of every piece into two, best union first.
    fn merges(&self, vocabulary: &HashMap<&str, usize>) -> Vec<(&str, &str)> {
        let mut merges = Vec::new();
        for piece in &self.pieces {
            let text = piece.text.as_str();
            let splits = text.char_indices().skip(1).map(|(at, _)| text.split_at(at));
            let mut splits: Vec<_> = splits
                .filter(|(left, right)| {
                    vocabulary.contains_key(left) && vocabulary.contains_key(right)
                })
                .collect();
            splits.sort_by_key(|(left, right)| (vocabulary[left], vocabulary[right]));
            merges.extend(
                splits
                    .into_iter()
                    .map(|(left, right)| (piece.score, left, right)),
            );
        }
        // Best first; what Python's reversed stable sort leaves equal stays in order.
        merges.sort_by(|a, b| {
            let lengths =
                |merge: &(f32, &str, &str)| (merge.1.chars().count(), merge.2.chars().count());
            b.0.total_cmp(&a.0)
                .then_with(|| lengths(b).cmp(&lengths(a)))
        });
        merges
            .into_iter()
            .map(|(_, left, right)| (left, right))
            .collect()
    }
}

fn piece_of(bytes: &[u8]) -> Result<Entry, SentencePieceError> {
    let mut entry = Entry {
        text: String::new(),
        score: 0.0,
        kind: Kind::Normal,
    };
    let mut reader = Reader::new(bytes);
    while let Some((field, value)) = reader.field()? {
        match (field, value) {
            (1, Field::Bytes(text)) if text.len() > LONGEST_PIECE => {
                return Err(SentencePieceError::Unsupported {
                    what: "a piece of more than 256 bytes",
                });
            }
            (1, Field::Bytes(text)) => {
                entry.text = std::str::from_utf8(text)
                    .map_err(|error| SentencePieceError::Damaged {
                        at: error.valid_up_to(),
                    })?
                    .to_owned();
            }
            (2, Field::Word(bits)) => entry.score = f32::from_bits(bits),
            (3, Field::Number(kind)) => {
                entry.kind = match kind {
                    2 => Kind::Unknown,
                    3 => Kind::Control,
                    4 => Kind::UserDefined,
                    5 => Kind::Unused,
                    6 => Kind::Byte,
                    _ => Kind::Normal,
                }
            }
            _ => {}
        }
    }
    Ok(entry)
}

/// Protobuf's wire format, as far as it is needed.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

enum Field<'a> {
    Number(u64),
    Word(u32),
    Bytes(&'a [u8]),
    Skipped,
}

impl<'a> Reader<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The next field's number and value, `None` at the end.
    fn field(&mut self) -> Result<Option<(u64, Field<'a>)>, SentencePieceError> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        let key = self.number()?;
        let value = match key & 7 {
            0 => Field::Number(self.number()?),
            1 => {
                self.take(8)?;
                Field::Skipped
            }
            2 => {
                let length = usize::try_from(self.number()?).unwrap_or(usize::MAX);
                Field::Bytes(self.take(length)?)
            }
            5 => {
                let mut word = [0; 4];
                word.copy_from_slice(self.take(4)?);
                Field::Word(u32::from_le_bytes(word))
            }
            _ => return Err(SentencePieceError::Damaged { at: self.at }),
        };
        Ok(Some((key >> 3, value)))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], SentencePieceError> {
        let damaged = SentencePieceError::Damaged { at: self.at };
        let end = self
            .at
            .checked_add(length)
            .filter(|end| *end <= self.bytes.len())
            .ok_or(damaged)?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u64, SentencePieceError> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(SentencePieceError::Damaged { at: self.at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A model of BPE that keeps spaces, with one piece of so many bytes.
    fn model(length: usize) -> Vec<u8> {
        let field = |number: u8, bytes: &[u8]| {
            let length = [bytes.len() as u8 | 0x80, (bytes.len() >> 7) as u8];
            [&[number << 3 | 2], &length[..], bytes].concat()
        };
        let piece = field(1, &vec![b'a'; length]);
        [
            field(1, &piece),
            field(2, &[3 << 3, 2]),
            field(3, &[4 << 3, 0]),
        ]
        .concat()
    }

    #[test]
    fn a_piece_that_would_take_for_ever_to_split_is_refused() {
        assert_eq!(SentencePiece::parse(&model(256)).unwrap().pieces.len(), 1);
        let error = SentencePiece::parse(&model(257)).unwrap_err().to_string();
        assert!(error.contains("a piece of more than 256 bytes"), "{error}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = SentencePiece::parse(&bytes);
        }
    }
}
