//! The architectures: each file reads like its reference in transformers or in
//! LLaVA, over rows `[positions, hidden]` of all sequences or tiles together.

pub(crate) mod clip;
pub(crate) mod decoder;
mod encoder;
pub(crate) mod linear;
pub(crate) mod merge;
pub(crate) mod projector;
pub(crate) mod siglip;
pub(crate) mod tower;
