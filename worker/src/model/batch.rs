//! What goes into one step of a model and what comes out, and the check that every part
//! fits before anything is computed.

use super::Model;
use crate::input::{Piece, positions};
use crate::kv::{KvCache, Span};

/// Why a model could not run. Faults of one part are found before anything is
/// computed, and leave the cache as it was.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// A part asks for something that cannot be.
    #[error("part {part} of the batch {problem}")]
    Part {
        /// Its index.
        part: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// An image does not fit the tower.
    #[error("image {image} {problem}")]
    Image {
        /// Its index.
        image: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// The device failed.
    #[error("failed to run the model")]
    Device(#[from] candle_core::Error),
}

/// What one sequence adds to a batch: a chunk of its prompt, or its last token.
#[derive(Debug, Clone)]
pub struct Part {
    /// Slot of the KV cache that holds the sequence; each at most once in a batch.
    pub slot: usize,
    /// Position of the first token; what the slot already holds.
    pub start: usize,
    /// What comes next in the sequence.
    pub input: Vec<Piece>,
    /// Whether the logits after the last position are wanted.
    pub logits: bool,
}

impl Part {
    /// A prompt, or the last chunk of one, whose logits are wanted.
    pub fn prompt(slot: usize, start: usize, input: Vec<Piece>) -> Self {
        Self {
            slot,
            start,
            input,
            logits: true,
        }
    }

    /// The one token that was sampled last.
    pub fn token(slot: usize, start: usize, token: u32) -> Self {
        Self::prompt(slot, start, vec![Piece::Tokens(vec![token])])
    }
}

/// What came out of a batch.
#[derive(Debug, Clone)]
pub struct Logits {
    pub(super) values: Vec<f32>,
    pub(super) vocab: usize,
    pub(super) rows: Vec<Option<usize>>,
}

impl Logits {
    pub(super) fn none(vocab: usize) -> Self {
        Self {
            values: Vec::new(),
            vocab,
            rows: Vec::new(),
        }
    }

    /// The logits of several runs, one after another.
    pub(super) fn joined(vocab: usize, runs: Vec<Self>) -> Self {
        let mut runs = runs.into_iter();
        let mut all = runs.next().unwrap_or_else(|| Self::none(vocab));
        for run in runs {
            let before = all.values.len() / vocab;
            all.values.extend(run.values);
            all.rows
                .extend(run.rows.iter().map(|row| row.map(|row| row + before)));
        }
        all
    }

    /// The logits `[vocab]` of part `part`, if it wanted them.
    pub fn row(&self, part: usize) -> Option<&[f32]> {
        let row = (*self.rows.get(part)?)?;
        self.values.get(row * self.vocab..(row + 1) * self.vocab)
    }
}

impl Model {
    /// Where each part's rows lie, if every part fits its slot.
    pub(super) fn spans(&self, kv: &KvCache, batch: &[Part]) -> Result<Vec<Span>, ForwardError> {
        let mut row = 0;
        let mut taken = vec![false; kv.slots()];
        let mut spans = Vec::with_capacity(batch.len());
        for (index, part) in batch.iter().enumerate() {
            let wrong = |problem: String| ForwardError::Part {
                part: index,
                problem,
            };
            let count = positions(&part.input);
            match taken.get_mut(part.slot) {
                None => {
                    return Err(wrong(format!(
                        "names slot {}, but there are {}",
                        part.slot,
                        kv.slots()
                    )));
                }
                Some(true) => return Err(wrong(format!("names slot {} again", part.slot))),
                Some(free) => *free = true,
            }
            if part.start != kv.len(part.slot) {
                return Err(wrong(format!(
                    "begins at position {}, but its slot holds {} tokens",
                    part.start,
                    kv.len(part.slot)
                )));
            }
            if count == 0 {
                return Err(wrong("is empty".to_owned()));
            }
            if part.start + count > kv.capacity() {
                return Err(wrong(format!(
                    "needs {} tokens, but a slot holds {}",
                    part.start + count,
                    kv.capacity()
                )));
            }
            for piece in &part.input {
                match piece {
                    Piece::Tokens(ids) => {
                        if let Some(id) = ids.iter().find(|id| **id as usize >= self.info.vocab) {
                            return Err(wrong(format!(
                                "has token {id}, but the vocabulary has {}",
                                self.info.vocab
                            )));
                        }
                    }
                    Piece::Image { features, rows } if rows.end > features.tokens() => {
                        return Err(wrong(format!(
                            "takes rows {rows:?} of an image of {}",
                            features.tokens()
                        )));
                    }
                    Piece::Image { .. } => {}
                }
            }
            spans.push(Span {
                slot: part.slot,
                start: part.start,
                row,
                count,
            });
            row += count;
        }
        Ok(spans)
    }
}
