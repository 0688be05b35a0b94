//! What the engine needs of a model. The one that is shipped is
//! [`LoadedModel`]; tests have a tiny one of their own.

use crate::input::ImageFeatures;
use crate::kv::KvCache;
use crate::model::{ForwardError, Model, Part};
use crate::pixels::PixelValues;

/// A model with a cache of its own.
pub trait Backend: Send + 'static {
    /// Number of KV slots.
    fn slots(&self) -> usize;

    /// Encodes images of many requests together.
    ///
    /// # Errors
    /// See [`Model::encode_images`].
    fn encode(&mut self, images: &[&PixelValues]) -> Result<Vec<ImageFeatures>, ForwardError>;

    /// Runs a batch; gives the logits `[vocab]` of each part that wants them.
    ///
    /// # Errors
    /// See [`Model::forward`].
    fn forward(&mut self, batch: &[Part]) -> Result<Rows, ForwardError>;

    /// Forgets all but the first `tokens` of a slot.
    fn truncate(&mut self, slot: usize, tokens: usize);

    /// Lets go of the memory of all but the first `tokens` of a slot, and of nothing that it holds.
    fn give_back(&mut self, slot: usize, tokens: usize);

    /// Makes `to` hold the first `tokens` of `from`.
    ///
    /// # Errors
    /// `from` holds fewer, or the device failed.
    fn copy_prefix(&mut self, from: usize, to: usize, tokens: usize) -> Result<(), ForwardError>;
}

/// Logits by part.
pub type Rows = Vec<Option<Vec<f32>>>;

/// A checkpoint in memory, and its cache.
#[derive(Debug)]
pub struct LoadedModel {
    model: Model,
    kv: KvCache,
}

impl LoadedModel {
    /// Gives the model a cache of `slots` sequences of at most `tokens` tokens.
    ///
    /// # Errors
    /// The device has no room.
    pub fn new(model: Model, slots: usize, tokens: usize) -> Result<Self, ForwardError> {
        let kv = model.new_kv(slots, tokens)?;
        Ok(Self { model, kv })
    }
}

impl Backend for LoadedModel {
    fn slots(&self) -> usize {
        self.kv.slots()
    }

    fn encode(&mut self, images: &[&PixelValues]) -> Result<Vec<ImageFeatures>, ForwardError> {
        self.model.encode_images(images)
    }

    fn forward(&mut self, batch: &[Part]) -> Result<Rows, ForwardError> {
        let logits = self.model.forward(&mut self.kv, batch)?;
        Ok((0..batch.len())
            .map(|part| logits.row(part).map(<[f32]>::to_vec))
            .collect())
    }

    fn truncate(&mut self, slot: usize, tokens: usize) {
        self.kv.truncate(slot, tokens);
    }

    fn give_back(&mut self, slot: usize, tokens: usize) {
        self.kv.give_back(slot, tokens);
    }

    fn copy_prefix(&mut self, from: usize, to: usize, tokens: usize) -> Result<(), ForwardError> {
        Ok(self.kv.copy_prefix(from, to, tokens)?)
    }
}
