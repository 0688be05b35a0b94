//! Scaled dot-product attention on the processors: [`cache`] keeps keys and
//! values of one head, [`spans`] runs the sequences of a batch over theirs, and
//! [`groups`] the tiles of a vision tower over themselves.

mod cache;
mod groups;
mod spans;

pub(crate) use cache::{HeadCache, sight};
pub(crate) use groups::attend_groups;
pub(crate) use spans::{Query, attend_spans};

/// Room for what one task works on.
#[derive(Default)]
struct Buffers {
    queries: Vec<f32>,
    scores: Vec<f32>,
    out: Vec<f32>,
}
