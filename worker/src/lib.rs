//! Everything about a LLaVA model: reading checkpoints, running, serving,
//! training and converting them. The one thing of Kubernetes that this crate
//! knows is its own Lease.

mod arch;
pub mod checkpoint;
pub mod commands;
pub mod config;
pub mod convert;
pub mod data;
pub mod engine;
mod error_text;
pub mod fetch;
pub mod image;
pub mod input;
pub mod inspect;
mod json_file;
mod kernels;
pub mod kv;
pub mod matmul;
pub mod model;
mod ops;
pub mod pixels;
pub mod prompt;
mod rope;
mod safetensors_file;
pub mod sampling;
pub mod serve;
pub mod speaker;
pub mod tokenize;
pub mod train;
pub mod weights;
