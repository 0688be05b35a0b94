//! The engine: one thread that owns the model and answers many requests at
//! once by continuous batching.
//!
//! [`plan`] decides and knows no model; [`run`] does and decides nothing.

mod backend;
pub mod decoder;
pub mod detokenizer;
mod handle;
pub mod key;
pub mod metrics;
pub mod plan;
pub mod request;
mod run;
pub mod sequence;
pub mod state;
pub mod stop;
pub mod vision_cache;

pub use backend::{Backend, LoadedModel, Rows};
pub use decoder::{Decode, Decoder};
pub use handle::{EngineHandle, Pulse};
pub use key::ImageHash;
pub use metrics::EngineMetrics;
pub use request::{
    Event, Failure, ImageContent, ImageInput, Prepared, PromptPiece, Request, TokenEvent,
};
pub use run::{EngineOptions, start};
pub use state::Budget;
pub use vision_cache::VisionCache;

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod tiny;
