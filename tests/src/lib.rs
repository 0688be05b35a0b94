//! The ground that every end-to-end promise stands on: a real Kubernetes that a
//! test starts in seconds, and a fault layer for the client of a controller.
//! The promises themselves are in `promises/`, one file each.

pub mod ask;
pub mod cluster;
pub mod fault;
pub mod history;
pub mod install;
pub mod load;
pub mod operator;
pub mod release;

pub use cluster::Cluster;
