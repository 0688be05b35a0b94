//! What a sequence is made of, for comparing: two sequences with equal keys up
//! to a position have equal keys and values in the cache up to there.

use std::ops::Range;

use crate::input::{ImageFeatures, Piece};

/// The SHA-256 of an image's bytes and of how it is processed.
pub type ImageHash = [u8; 32];

/// The positions of a sequence as runs of tokens and images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Key {
    runs: Vec<Run>,
    len: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Run {
    Tokens(Vec<u32>),
    Image { hash: ImageHash, tokens: usize },
}

impl Run {
    fn len(&self) -> usize {
        match self {
            Self::Tokens(ids) => ids.len(),
            Self::Image { tokens, .. } => *tokens,
        }
    }

    /// Positions from the start that are the same.
    fn common(&self, other: &Self) -> usize {
        match (self, other) {
            (Self::Tokens(a), Self::Tokens(b)) => {
                a.iter().zip(b).take_while(|(a, b)| a == b).count()
            }
            (
                Self::Image { hash, tokens },
                Self::Image {
                    hash: other_hash,
                    tokens: other_tokens,
                },
            ) if hash == other_hash => *tokens.min(other_tokens),
            _ => 0,
        }
    }
}

impl Key {
    /// Positions in all.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no position.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds one token.
    pub fn push(&mut self, token: u32) {
        self.len += 1;
        if let Some(Run::Tokens(ids)) = self.runs.last_mut() {
            ids.push(token);
        } else {
            self.runs.push(Run::Tokens(vec![token]));
        }
    }

    /// Adds tokens.
    pub fn extend(&mut self, tokens: &[u32]) {
        for &token in tokens {
            self.push(token);
        }
    }

    /// Adds an image of `tokens` positions.
    pub fn push_image(&mut self, hash: ImageHash, tokens: usize) {
        self.len += tokens;
        self.runs.push(Run::Image { hash, tokens });
    }

    /// Positions from the start that are the same in both.
    #[must_use]
    pub fn common(&self, other: &Self) -> usize {
        let mut same = 0;
        for (a, b) in self.runs.iter().zip(&other.runs) {
            let common = a.common(b);
            same += common;
            if common < a.len() || common < b.len() {
                break;
            }
        }
        same
    }

    /// Keeps the first `len` positions.
    pub fn truncate(&mut self, len: usize) {
        let mut room = len;
        self.runs.retain_mut(|run| {
            let keep = run.len().min(room);
            room -= keep;
            match run {
                Run::Tokens(ids) => ids.truncate(keep),
                Run::Image { tokens, .. } => *tokens = keep,
            }
            keep > 0
        });
        self.len = self.len.min(len);
    }

    /// Where each image stands.
    #[must_use]
    pub fn images(&self) -> Vec<Range<usize>> {
        let mut at = 0;
        let mut images = Vec::new();
        for run in &self.runs {
            if matches!(run, Run::Image { .. }) {
                images.push(at..at + run.len());
            }
            at += run.len();
        }
        images
    }

    /// All tokens, images left out.
    pub fn tokens(&self) -> impl Iterator<Item = u32> {
        self.runs
            .iter()
            .flat_map(|run| match run {
                Run::Tokens(ids) => ids.as_slice(),
                Run::Image { .. } => &[],
            })
            .copied()
    }

    /// The model's input for the positions `range`; `features` holds the images
    /// by their order. `None` when one that is needed is missing.
    #[must_use]
    pub fn slice(
        &self,
        range: Range<usize>,
        features: &[Option<ImageFeatures>],
    ) -> Option<Vec<Piece>> {
        let mut features = features.iter();
        let mut pieces = Vec::new();
        let mut at = 0;
        for run in &self.runs {
            let start = range.start.max(at);
            let end = range.end.min(at + run.len());
            let rows = start.saturating_sub(at)..end.saturating_sub(at);
            let image = match run {
                Run::Tokens(_) => None,
                Run::Image { .. } => features.next(),
            };
            if start < end {
                pieces.push(match run {
                    Run::Tokens(ids) => Piece::Tokens(ids[rows].to_vec()),
                    Run::Image { .. } => Piece::Image {
                        features: image?.clone()?,
                        rows,
                    },
                });
            }
            at += run.len();
        }
        Some(pieces)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(parts: &[(bool, u32)]) -> Key {
        let mut key = Key::default();
        for &(image, value) in parts {
            if image {
                key.push_image([value as u8; 32], 3);
            } else {
                key.push(value);
            }
        }
        key
    }

    #[test]
    fn images_with_other_pixels_end_the_common_part() {
        let a = key(&[(false, 1), (true, 7), (false, 2)]);
        let b = key(&[(false, 1), (true, 8), (false, 2)]);
        assert_eq!(a.common(&b), 1);
        assert_eq!(a.common(&a), 5);
    }

    proptest! {
        #[test]
        fn a_truncated_key_is_common_up_to_its_length(
            parts in prop::collection::vec((any::<bool>(), 0u32..4), 0..20),
            len in 0usize..40,
        ) {
            let whole = key(&parts);
            let mut part = whole.clone();
            part.truncate(len);
            prop_assert_eq!(part.len(), len.min(whole.len()));
            prop_assert_eq!(part.common(&whole), part.len());
            prop_assert_eq!(whole.common(&part), part.len());
        }
    }
}
