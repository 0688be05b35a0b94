//! What a sequence is made of once its images are encoded: runs of token ids
//! and image features in order, cut into chunks for prefill.

use candle_core::{DType, Tensor};
use std::ops::Range;

/// One image after tower, projector and merge: rows that stand in the
/// sequence where its image slot is. Cloning shares the memory.
#[derive(Debug, Clone)]
pub struct ImageFeatures {
    rows: Tensor,
}

impl ImageFeatures {
    /// Wraps `[tokens, hidden]`.
    pub(crate) fn new(rows: Tensor) -> Self {
        Self { rows }
    }

    /// Positions that the image takes in a sequence.
    pub fn tokens(&self) -> usize {
        self.rows.dims()[0]
    }

    /// Memory that the features hold, in bytes.
    pub fn bytes(&self) -> usize {
        self.rows.elem_count() * self.rows.dtype().size_in_bytes()
    }

    /// The rows as numbers, to compare them.
    ///
    /// # Errors
    /// The device failed.
    pub fn to_rows(&self) -> candle_core::Result<Vec<Vec<f32>>> {
        self.rows.to_dtype(DType::F32)?.to_vec2()
    }

    /// The rows, `[tokens, hidden]`.
    pub(crate) fn rows(&self) -> &Tensor {
        &self.rows
    }
}

/// A run of positions of one kind.
#[derive(Debug, Clone)]
pub enum Piece {
    /// Text, as ids of the vocabulary.
    Tokens(Vec<u32>),
    /// Some rows of an image.
    Image {
        /// The whole image.
        features: ImageFeatures,
        /// Which of its rows.
        rows: Range<usize>,
    },
}

impl Piece {
    /// A whole image.
    pub fn image(features: ImageFeatures) -> Self {
        let rows = 0..features.tokens();
        Self::Image { features, rows }
    }

    /// Positions that the piece takes.
    pub fn len(&self) -> usize {
        match self {
            Self::Tokens(ids) => ids.len(),
            Self::Image { rows, .. } => rows.len(),
        }
    }

    /// Whether the piece takes no position.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn slice(&self, range: Range<usize>) -> Self {
        match self {
            Self::Tokens(ids) => Self::Tokens(ids[range].to_vec()),
            Self::Image { features, rows } => Self::Image {
                features: features.clone(),
                rows: rows.start + range.start..rows.start + range.end,
            },
        }
    }
}

/// The positions `range` of the sequence `pieces`, as pieces: a chunk of a
/// prefill. Positions past the end are left out.
pub fn slice(pieces: &[Piece], range: Range<usize>) -> Vec<Piece> {
    let mut chunk = Vec::new();
    let mut at = 0;
    for piece in pieces {
        let start = range.start.max(at);
        let end = range.end.min(at + piece.len());
        if start < end {
            chunk.push(piece.slice(start - at..end - at));
        }
        at += piece.len();
    }
    chunk
}

/// Positions that `pieces` take together.
pub fn positions(pieces: &[Piece]) -> usize {
    pieces.iter().map(Piece::len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn image(tokens: usize) -> Piece {
        let rows = Tensor::zeros((tokens, 4), DType::F32, &Device::Cpu).unwrap();
        Piece::image(ImageFeatures::new(rows))
    }

    #[test]
    fn a_chunk_may_begin_and_end_inside_an_image() {
        let pieces = [
            Piece::Tokens(vec![1, 2, 3]),
            image(5),
            Piece::Tokens(vec![4]),
        ];
        let chunk = slice(&pieces, 2..6);
        assert!(matches!(&chunk[0], Piece::Tokens(ids) if ids == &[3]));
        assert!(matches!(&chunk[1], Piece::Image { rows, .. } if *rows == (0..3)));
        let rest = slice(&pieces, 6..100);
        assert!(matches!(&rest[0], Piece::Image { rows, .. } if *rows == (3..5)));
        assert_eq!(positions(&chunk) + positions(&rest), 7);
    }
}
