//! Training: LLaVA's stages, on the project's own data or the user's.

pub mod batch;
pub mod checkpoint;
pub mod corpus;
pub mod evaluate;
pub mod export;
pub mod group;
pub mod journal;
pub mod lora;
pub mod names;
pub mod net;
pub mod ops;
pub mod optim;
pub mod params;
pub mod pass;
pub mod picture;
pub mod plot;
pub mod recompute;
pub mod record;
pub mod run;
pub mod sample;
pub mod sampler;
pub mod settings;
pub mod template;

pub use run::{Outcome, Run, RunError};
pub use settings::Settings;
