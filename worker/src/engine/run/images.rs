//! The vision tower's part of a step: the images of many requests go through
//! together, each distinct one once.

use std::collections::HashMap;
use std::sync::Arc;

use shell::clock;

use super::Engine;
use super::guard::guarded;
use crate::engine::backend::Backend;
use crate::engine::key::ImageHash;
use crate::engine::request::{ImageContent, Prepared};
use crate::engine::state::SequenceId;
use crate::input::ImageFeatures;
use crate::pixels::PixelValues;

impl<B: Backend> Engine<B> {
    /// Gives these sequences the next so many of the images that they lack. One whose
    /// image cannot be encoded ends.
    pub(super) fn encode(&mut self, next: &[(SequenceId, usize)]) {
        let mut features = HashMap::new();
        let mut wanted: HashMap<ImageHash, Arc<Prepared>> = HashMap::new();
        let mut asked: Vec<(SequenceId, Vec<usize>)> = Vec::new();
        for (id, count) in next {
            let (Some(running), Some(sequence)) =
                (self.state.running_mut(*id), self.sequences.get(id))
            else {
                continue;
            };
            let missing = sequence.missing_images(&running.key, running.computed);
            let indices: Vec<usize> = missing.take(*count).collect();
            for &index in &indices {
                let image = &sequence.images[index];
                // A sequence of an earlier step may have brought the same one.
                if let Some(encoded) = self.options.images.get(&image.hash) {
                    features.insert(image.hash, encoded);
                } else if let ImageContent::Pixels(pixels) = &image.content {
                    wanted.insert(image.hash, Arc::clone(pixels));
                }
            }
            asked.push((*id, indices));
        }
        if !wanted.is_empty() {
            let began = clock::now();
            let (hashes, pixels): (Vec<_>, Vec<_>) = wanted.into_iter().unzip();
            let encoded = self.encode_each(&pixels);
            self.options.metrics.images.inc_by(pixels.len() as u64);
            self.count_model_time(began);
            for (hash, encoded) in hashes.into_iter().zip(encoded) {
                if let Some(encoded) = encoded {
                    self.options.images.insert(hash, encoded.clone());
                    features.insert(hash, encoded);
                }
            }
        }
        for (id, indices) in asked {
            self.hand_out(id, &indices, &features);
        }
    }

    fn hand_out(
        &mut self,
        id: SequenceId,
        asked: &[usize],
        features: &HashMap<ImageHash, ImageFeatures>,
    ) {
        let (Some(running), Some(sequence)) =
            (self.state.running_mut(id), self.sequences.get_mut(&id))
        else {
            return;
        };
        sequence.take_images(|image| {
            let features = features.get(&image.hash);
            let fits = features.filter(|features| features.tokens() == image.tokens);
            fits.cloned()
        });
        running.tiles = sequence.missing_tiles(&running.key, running.computed);
        if asked
            .iter()
            .any(|index| sequence.features[*index].is_none())
        {
            self.fail(id);
        }
    }

    /// All together; when that fails, one by one, so that only the faulty ones are lost.
    fn encode_each(&mut self, pixels: &[Arc<Prepared>]) -> Vec<Option<ImageFeatures>> {
        let all: Vec<&PixelValues> = pixels.iter().map(|pixels| &***pixels).collect();
        match guarded(|| self.backend.encode(&all)) {
            Ok(features) => features.into_iter().map(Some).collect(),
            Err(problem) => {
                tracing::error!(
                    images = all.len(),
                    problem,
                    "cannot encode images together; trying each alone"
                );
                all.iter()
                    .map(|image| {
                        guarded(|| self.backend.encode(&[image]))
                            .ok()
                            .and_then(|mut one| one.pop())
                    })
                    .collect()
            }
        }
    }
}
