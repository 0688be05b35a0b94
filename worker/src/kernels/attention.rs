//! Scaled dot-product attention on the processors: [`slot`] keeps keys and values
//! of a sequence, [`cache`] is one head of it, [`spans`] runs the sequences of a batch over theirs, and
//! [`groups`] the tiles of a vision tower over themselves.

mod cache;
mod groups;
mod slot;
mod spans;

pub(crate) use cache::{HeadCache, sight};
pub(crate) use groups::attend_groups;
pub(crate) use slot::SlotCache;
pub(crate) use spans::{Query, attend_spans};

/// Room for what one task works on.
#[derive(Default)]
struct Buffers {
    queries: Vec<f32>,
    scores: Vec<f32>,
    out: Vec<f32>,
}
