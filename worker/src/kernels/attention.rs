//! Scaled dot-product attention on the processors: [`cache`] keeps keys and
//! values of one head, [`spans`] runs the sequences of a batch over theirs, and
//! [`groups`] the tiles of a vision tower over themselves.

mod cache;
mod groups;
mod spans;

pub(crate) use cache::sight;
pub(crate) use groups::attend_groups;
pub(crate) use spans::{Query, attend_spans};

/// Keys and values of one head of the language model. Halves were measured:
/// logits then differ from the reference by 0.002, twice what is allowed.
pub(crate) type HeadCache = cache::Cache<f32>;

/// Room for what one task works on.
#[derive(Default)]
struct Buffers {
    queries: Vec<f32>,
    scores: Vec<f32>,
    out: Vec<f32>,
}
