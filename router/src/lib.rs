//! The router of llava-operator: one address that takes OpenAI-style and
//! LLaVA-style requests and streams answers from the least loaded ready worker.
//!
//! The [`table`] says which workers there are, [`dispatch`] chooses among them,
//! [`request`] takes a body in, [`proxy`] brings it to a worker and the answer
//! back, [`upstream`] speaks to workers, and [`api`] is what clients see.

mod api;
pub mod args;
pub mod ask;
pub mod cli;
mod conn;
mod dispatch;
mod end;
mod http2;
mod metrics;
mod probe;
mod proxy;
mod refusal;
mod request;
mod run;
mod server;
mod table;
mod trace;
mod turn;
mod untaken;
mod upstream;

pub use run::{Router, StartError};
