//! Text to token ids, in pieces: special tokens count only in text that a template
//! wrote. The steps are those of the `tokenizers` crate, and for harmless text so
//! are the ids; only the search for special tokens is ours.

mod files;
mod sentencepiece;
mod spelling;

use std::path::{Path, PathBuf};

use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::normalizer::Range;
use tokenizers::tokenizer::{AddedToken, Model, Normalizer, PreTokenizer};
use tokenizers::{NormalizedString, OffsetType, PreTokenizedString, Token, Tokenizer};

use crate::json_file::JsonFileError;
use crate::prompt::Piece;
use crate::prompt::markup::{Markup, Run};

use files::Loaded;
pub(crate) use files::SpecialTokens;
use sentencepiece::DummyPrefix;
pub use sentencepiece::SentencePieceError;

/// First of the ids that stand for image slots while text is being tokenised.
const SLOT: u32 = u32::MAX / 2;

/// A tokenizer that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A JSON file is missing or broken.
    #[error(transparent)]
    File(#[from] JsonFileError),
    /// There is none of the files that hold a tokenizer.
    #[error("find a tokenizer in {}: there is neither tokenizer.json nor tokenizer.model", dir.display())]
    Missing {
        /// The checkpoint.
        dir: PathBuf,
    },
    /// `tokenizer.json` is not what the library reads.
    #[error("load {}", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// Why.
        source: tokenizers::Error,
    },
    /// `tokenizer.model` is not what is read here.
    #[error("load {}", path.display())]
    SentencePiece {
        /// The file.
        path: PathBuf,
        /// Why.
        source: SentencePieceError,
    },
    /// The tokenizer has ids that the model has no embedding for.
    #[error("fit {} to the model: token {token:?} has id {id}, but the model's vocabulary ends before {vocabulary}", path.display())]
    DoesNotFit {
        /// The tokenizer's file.
        path: PathBuf,
        /// The token with the highest id.
        token: String,
        /// Its id.
        id: u32,
        /// Rows of the model's embedding.
        vocabulary: usize,
    },
    /// The library refuses a text.
    #[error("tokenise the prompt")]
    Encode(#[source] tokenizers::Error),
}

/// Where image slots stand among the steps of tokenising.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slots {
    /// Like a special token inside one text (transformers).
    InText,
    /// Between texts tokenised each on its own (`tokenizer_image_token` of LLaVA).
    BetweenTexts,
}

/// A checkpoint's tokenizer.
#[derive(Debug)]
pub struct TextTokenizer {
    tokenizer: Tokenizer,
    path: PathBuf,
    special: SpecialTokens,
    dummy_prefix: DummyPrefix,
    /// Ids in front of every text: the BOS token, where there is one.
    prefix: Vec<u32>,
    finder: AhoCorasick,
    added: Vec<(u32, AddedToken)>,
}

impl TextTokenizer {
    /// The id of the special token that is written `text`.
    pub(crate) fn special_id(&self, text: &str) -> Option<u32> {
        let mut special = self.added.iter().filter(|(_, token)| token.special);
        special
            .find(|(_, token)| token.content == text)
            .map(|(id, _)| *id)
    }

    /// Loads `tokenizer.json`, or `tokenizer.model` where only that exists.
    ///
    /// # Errors
    /// There is neither, or it cannot be read.
    pub fn from_checkpoint(dir: &Path) -> Result<Self, TokenizerError> {
        Self::with_special_tokens(dir, &[])
    }

    /// The same, with `more` special tokens behind all others, as far as they are not there.
    pub(crate) fn with_special_tokens(dir: &Path, more: &[&str]) -> Result<Self, TokenizerError> {
        let special = SpecialTokens::read(dir)?;
        let mut loaded = files::load(dir, &special)?;
        let more = more.iter().map(|text| AddedToken::from(*text, true));
        match loaded.tokenizer.add_special_tokens(more) {
            Ok(_) => Self::new(loaded, special),
            Err(source) => Err(TokenizerError::Load {
                path: loaded.path,
                source,
            }),
        }
    }

    fn new(loaded: Loaded, special: SpecialTokens) -> Result<Self, TokenizerError> {
        let Loaded {
            path,
            mut tokenizer,
            dummy_prefix,
        } = loaded;
        // Cutting and padding are the engine's business, and would go unseen here.
        let load = |source| TokenizerError::Load {
            path: path.clone(),
            source,
        };
        tokenizer.with_truncation(None).map_err(load)?;
        tokenizer.with_padding(None);
        let prefix = match special.adds_bos {
            Some(false) => Vec::new(),
            _ => tokenizer
                .encode("", true)
                .map_err(load)?
                .get_ids()
                .iter()
                .take(1)
                .copied()
                .collect(),
        };
        let mut added: Vec<_> = tokenizer.get_added_tokens_decoder().into_iter().collect();
        added.retain(|(_, token)| !token.content.is_empty());
        added.sort_unstable_by_key(|(id, _)| *id);
        let finder = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(added.iter().map(|(_, token)| &token.content))
            .map_err(|error| load(error.into()))?;
        Ok(Self {
            tokenizer,
            path,
            special,
            dummy_prefix,
            prefix,
            finder,
            added,
        })
    }

    /// Checks that the model has an embedding for every token.
    ///
    /// # Errors
    /// Names the token with the highest id if it has none.
    pub fn check_fits(&self, vocabulary: usize) -> Result<(), TokenizerError> {
        let highest = self
            .tokenizer
            .get_vocab(true)
            .into_iter()
            .max_by_key(|(_, id)| *id);
        match highest {
            Some((token, id)) if id as usize >= vocabulary => Err(TokenizerError::DoesNotFit {
                path: self.path.clone(),
                token,
                id,
                vocabulary,
            }),
            _ => Ok(()),
        }
    }

    /// The library's tokenizer, for turning ids back to text.
    #[must_use]
    pub fn inner(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Bytes that a token stands for; they may be a part of a character. Special
    /// tokens stand for their names, ids without a token for nothing.
    pub(crate) fn bytes(&self, token: u32) -> Vec<u8> {
        let Some(piece) = self.tokenizer.id_to_token(token) else {
            return Vec::new();
        };
        if self
            .added
            .binary_search_by_key(&token, |(id, _)| *id)
            .is_ok()
        {
            return piece.into_bytes();
        }
        spelling::bytes(&piece, self.tokenizer.get_decoder())
    }

    pub(crate) fn special(&self) -> &SpecialTokens {
        &self.special
    }

    /// Tokenises a rendered prompt; text runs and image slots keep their order.
    pub(crate) fn pieces(
        &self,
        markup: &Markup,
        slots: Slots,
    ) -> Result<Vec<Piece>, TokenizerError> {
        let mut runs = markup.runs();
        let mut ids = Vec::new();
        // A template that writes the BOS token itself means no second one.
        let bos = self
            .prefix
            .first()
            .and_then(|id| self.tokenizer.id_to_token(*id));
        let written = |run: &Run| {
            bos.as_ref().is_some_and(|bos| {
                run.text.starts_with(bos)
                    && run
                        .ours
                        .first()
                        .is_some_and(|ours| ours.start == 0 && ours.end >= bos.len())
            })
        };
        if !runs.first().is_some_and(written) {
            ids.extend(&self.prefix);
        }
        match slots {
            Slots::InText => ids.extend(self.encode(&mut runs)?),
            Slots::BetweenTexts => {
                for (at, run) in runs.iter_mut().enumerate() {
                    if at > 0 {
                        ids.push(SLOT);
                    }
                    ids.extend(self.encode(std::slice::from_mut(run))?);
                }
            }
        }
        let mut pieces = Vec::new();
        let mut images = 0;
        for id in ids {
            if id >= SLOT {
                pieces.push(Piece::Image(images));
                images += 1;
            } else if let Some(Piece::Text(text)) = pieces.last_mut() {
                text.push(id);
            } else {
                pieces.push(Piece::Text(vec![id]));
            }
        }
        Ok(pieces)
    }

    /// Ids of runs joined by image slots, as one text.
    fn encode(&self, runs: &mut [Run]) -> Result<Vec<u32>, TokenizerError> {
        let mut text = String::new();
        let mut cuts = Vec::new();
        for (at, run) in runs.iter().enumerate() {
            if at > 0 {
                cuts.push(Cut {
                    start: text.len(),
                    end: text.len() + 1,
                    id: SLOT,
                });
                text.push('\n');
            }
            self.find_special(run, text.len(), &mut cuts);
            text.push_str(&run.text);
        }
        let starts_with_cut = cuts.first().is_some_and(|cut| cut.start == 0);
        if self.dummy_prefix == DummyPrefix::FirstRun && !text.is_empty() && !starts_with_cut {
            text.insert(0, ' ');
            for cut in &mut cuts {
                cut.start += 1;
                cut.end += 1;
            }
        }
        let mut whole = PreTokenizedString::from(text.as_str());
        whole
            .split(|_, text| Ok(split_at(&text, &cuts)))
            .map_err(TokenizerError::Encode)?;
        if let Some(normalizer) = self.tokenizer.get_normalizer() {
            whole
                .normalize(|text| normalizer.normalize(text))
                .map_err(TokenizerError::Encode)?;
        }
        if let Some(pre_tokenizer) = self.tokenizer.get_pre_tokenizer() {
            pre_tokenizer
                .pre_tokenize(&mut whole)
                .map_err(TokenizerError::Encode)?;
        }
        whole
            .tokenize(|text| self.plain(text.get()))
            .map_err(TokenizerError::Encode)?;
        let encoding = whole
            .into_encoding(None, 0, OffsetType::Byte)
            .map_err(TokenizerError::Encode)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Tokens of text without special ones. Some models hold them as ordinary
    /// entries and would find them in text: then it goes letter by letter.
    fn plain(&self, text: &str) -> tokenizers::Result<Vec<Token>> {
        let model = self.tokenizer.get_model();
        let tokens = model.tokenize(text)?;
        let is_special = |token: &Token| {
            let at = self.added.binary_search_by_key(&token.id, |(id, _)| *id);
            at.is_ok_and(|at| self.added[at].1.special && self.added[at].1.content == token.value)
        };
        if !tokens.iter().any(is_special) {
            return Ok(tokens);
        }
        let mut letters = Vec::new();
        for (at, letter) in text.char_indices() {
            let mut bytes = [0; 4];
            for mut token in model.tokenize(letter.encode_utf8(&mut bytes))? {
                token.offsets = (token.offsets.0 + at, token.offsets.1 + at);
                letters.push(token);
            }
        }
        Ok(letters)
    }

    /// Special tokens in the parts of a run that are ours, as the library finds them.
    fn find_special(&self, run: &Run, offset: usize, cuts: &mut Vec<Cut>) {
        let mut taken = 0;
        for ours in &run.ours {
            for found in self.finder.find_iter(&run.text[ours.clone()]) {
                let (id, token) = &self.added[found.pattern().as_usize()];
                let (mut start, mut end) = (ours.start + found.start(), ours.start + found.end());
                let (before, after) = (&run.text[..start], &run.text[end..]);
                if token.single_word && (before.ends_with(is_word) || after.starts_with(is_word)) {
                    continue;
                }
                if token.lstrip {
                    start = before.trim_end().len().max(taken);
                }
                if token.rstrip {
                    end = run.text.len() - after.trim_start().len();
                }
                if start < taken {
                    continue;
                }
                taken = end;
                cuts.push(Cut {
                    start: start + offset,
                    end: end + offset,
                    id: *id,
                });
            }
        }
    }
}

/// Bytes of a text that are one token.
struct Cut {
    start: usize,
    end: usize,
    id: u32,
}

fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

fn split_at(text: &NormalizedString, cuts: &[Cut]) -> Vec<(NormalizedString, Option<Vec<Token>>)> {
    let mut parts = Vec::new();
    let mut push = |start: usize, end: usize, token: Option<u32>| {
        let Some(part) = text.slice(Range::Normalized(start..end)) else {
            return;
        };
        let tokens = token.map(|id| vec![Token::new(id, part.get().to_owned(), (0, end - start))]);
        parts.push((part, tokens));
    };
    let mut at = 0;
    for cut in cuts {
        push(at, cut.start, None);
        push(cut.start, cut.end, Some(cut.id));
        at = cut.end;
    }
    push(at, text.len(), None);
    parts
}
