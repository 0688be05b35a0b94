//! Reconciles LlavaDeployments into LlavaWorkers, and those into Pods and
//! Leases: observe, check, plan, apply, report. Only `observe` and `apply` touch
//! the world; everything decided in between is a pure function with its own tests.

pub mod args;
pub mod backoff;
pub mod births;
pub mod conditions;
pub mod context;
pub mod demand;
pub mod deployment;
pub mod drive;
pub mod effects;
pub mod expectations;
#[cfg(test)]
mod fake;
pub mod heartbeat;
pub mod key;
pub mod leader;
pub mod metrics;
pub mod names;
pub mod now;
pub mod outcome;
pub mod pace;
pub mod queue;
pub mod revision;
pub mod run;
pub mod settings;
pub mod step;
pub mod subset;
pub mod turns;
pub mod worker;
pub mod world;
