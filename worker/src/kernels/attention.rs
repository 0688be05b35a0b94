//! Scaled dot-product attention on the processors: [`slot`] keeps keys and values of a sequence,
//! and [`cache`] is one head of it. [`rows`] attends a few query rows, by the products of
//! [`words`]; [`spans`] does so for the sequences of a batch, and [`groups`] for the tiles of a
//! vision tower.

mod cache;
mod groups;
mod rows;
mod slot;
mod spans;
mod words;

pub(crate) use cache::HeadCache;
pub(crate) use groups::attend_groups;
pub(crate) use rows::sight;
pub(crate) use slot::SlotCache;
pub(crate) use spans::{Query, attend_spans};

/// Room for what one task works on.
#[derive(Default)]
struct Buffers {
    queries: Vec<f32>,
    scratch: rows::Scratch,
    out: Vec<f32>,
    key: Vec<f32>,
    whole: Vec<i16>,
}
