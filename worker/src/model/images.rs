//! Tiles through tower and projector, a few at a time. What they gave is placed in its
//! image at once, so that nothing is held but the images and one such chunk.

use super::Model;
use candle_core::{Result, Tensor};
use std::slice::Chunks;

/// Tiles that go through the tower together: more would not be faster, and
/// each takes some 20 MB inside the tower.
const TILES_AT_ONCE: usize = 4;

/// The rows of encoded tiles, in order.
pub(super) struct TileRows<'a> {
    model: &'a Model,
    tiles: Chunks<'a, &'a [f32]>,
    /// The chunk at hand, and how many of its rows are placed.
    chunk: Option<(Tensor, usize)>,
}

impl<'a> TileRows<'a> {
    pub(super) fn new(model: &'a Model, tiles: &'a [&'a [f32]]) -> Self {
        Self {
            model,
            tiles: tiles.chunks(TILES_AT_ONCE),
            chunk: None,
        }
    }

    /// The next `count` rows, `[count, hidden]`.
    pub(super) fn next(&mut self, count: usize) -> Result<Tensor> {
        let (maker, hidden) = (&self.model.maker, self.model.config.text.hidden);
        let image = Tensor::zeros((count, hidden), maker.dtype(), maker.device())?;
        let mut placed = 0;
        while placed < count {
            let (chunk, from) = match self.chunk.take() {
                Some(begun) => begun,
                None => (self.encode()?, 0),
            };
            let rows = chunk.dims2()?.0;
            let more = (rows - from).min(count - placed);
            image.slice_set(&chunk.narrow(0, from, more)?.contiguous()?, 0, placed)?;
            placed += more;
            if from + more < rows {
                self.chunk = Some((chunk, from + more));
            }
        }
        Ok(image)
    }

    fn encode(&mut self) -> Result<Tensor> {
        let Some(tiles) = self.tiles.next() else {
            candle_core::bail!("images have more tiles than were given");
        };
        let maker = &self.model.maker;
        let features = self
            .model
            .tower
            .forward(tiles, maker.device(), maker.dtype())?;
        self.model.projector.forward(&features)
    }
}
