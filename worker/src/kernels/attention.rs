//! Scaled dot-product attention on the processors: [`slot`] keeps keys and values
//! of a sequence, [`cache`] is one head of it, [`words`] the products with what it holds, [`spans`] runs the sequences of a batch over theirs, and
//! [`groups`] the tiles of a vision tower over themselves.

mod cache;
mod groups;
mod slot;
mod spans;
mod words;

pub(crate) use cache::{HeadCache, sight};
pub(crate) use groups::attend_groups;
pub(crate) use slot::SlotCache;
pub(crate) use spans::{Query, attend_spans};

/// Room for what one task works on.
#[derive(Default)]
struct Buffers {
    queries: Vec<f32>,
    scratch: cache::Scratch,
    out: Vec<f32>,
    key: Vec<f32>,
    whole: Vec<i16>,
}
