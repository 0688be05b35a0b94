//! Samples laid end to end: no padding, so that no arithmetic is spent on it.

use candle_core::{Device, Result, Tensor};

use super::ops::{Segments, Targets};
use super::sample::{Sample, Slot};

/// A packed batch of conversations.
#[derive(Debug)]
pub struct Batch {
    /// `[images · patches, 3 · patch²]`; none without images.
    pub patches: Option<Tensor>,
    /// Number of images.
    pub images: usize,
    /// Text tokens of all samples in order.
    pub ids: Vec<u32>,
    /// For each position, its row among the text tokens followed by the image features.
    pub order: Vec<u32>,
    /// Where each sample starts.
    pub segments: Segments,
    /// Positions whose next token is learned.
    pub learned: Vec<u32>,
    /// Those next tokens.
    pub targets: Targets,
    /// For each learned token, its sample and which of the sample's answers it belongs to.
    pub answers: Vec<(usize, usize)>,
}

/// A batch of images with per-patch labels.
#[derive(Debug)]
pub struct TowerBatch {
    /// `[images · patches, 3 · patch²]`.
    pub patches: Tensor,
    /// Number of images.
    pub images: usize,
    /// One set of labels a label kind, one label a patch.
    pub targets: Vec<Targets>,
}

impl Batch {
    /// Packs `samples` with the patches of their images in order; an image takes
    /// `image_tokens` positions and `patch_rows` rows of `patch_len` values.
    ///
    /// # Errors
    /// When the device fails.
    pub fn pack(
        samples: &[Sample],
        patches: Vec<f32>,
        patch_len: usize,
        image_tokens: usize,
        device: &Device,
    ) -> Result<Self> {
        let texts = samples
            .iter()
            .flat_map(|s| &s.slots)
            .filter(|s| **s != Slot::Image)
            .count();
        let (mut ids, mut order, mut segments) = (Vec::new(), Vec::new(), vec![0]);
        let (mut learned, mut targets, mut answers) = (Vec::new(), Vec::new(), Vec::new());
        let mut images = 0;
        for (index, sample) in samples.iter().enumerate() {
            for slot in &sample.slots {
                match *slot {
                    Slot::Token(id, answer) => {
                        // The first position of a sample has none before it to predict it.
                        if let Some(answer) = answer.filter(|_| order.len() > segments[index]) {
                            learned.push(order.len() as u32 - 1);
                            targets.push(id);
                            answers.push((index, answer));
                        }
                        order.push(ids.len() as u32);
                        ids.push(id);
                    }
                    Slot::Image => {
                        let first = texts + images * image_tokens;
                        order.extend((first..first + image_tokens).map(|row| row as u32));
                        images += 1;
                    }
                }
            }
            segments.push(order.len());
        }
        let rows = patches.len() / patch_len;
        let patches = match images {
            0 => None,
            _ => Some(Tensor::from_vec(patches, (rows, patch_len), device)?),
        };
        Ok(Self {
            patches,
            images,
            ids,
            order,
            segments: segments.into(),
            learned,
            targets: Targets::even(targets),
            answers,
        })
    }

    /// Positions of the batch, text and image.
    pub fn tokens(&self) -> usize {
        self.order.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_point_at_their_rows_and_learned_tokens_at_the_one_before() {
        let token = |id, answer| Slot::Token(id, answer);
        let sample = Sample {
            slots: vec![
                token(1, None),
                Slot::Image,
                token(7, None),
                token(8, Some(0)),
            ],
        };
        let text = Sample {
            slots: vec![token(1, None), token(9, Some(0))],
        };
        let batch = Batch::pack(&[sample, text], vec![0.0; 2 * 3], 3, 2, &Device::Cpu).unwrap();
        assert_eq!(batch.ids, [1, 7, 8, 1, 9]);
        assert_eq!(batch.order, [0, 5, 6, 1, 2, 3, 4]);
        assert_eq!(*batch.segments, [0, 5, 7]);
        assert_eq!(batch.learned, [3, 5]);
        assert_eq!(*batch.targets.entries, [8, 9]);
        assert_eq!(batch.answers, [(0, 0), (1, 0)]);
    }
}
