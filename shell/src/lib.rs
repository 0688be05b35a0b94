//! What every process of this project needs and none should write twice: logs,
//! an admin port, readiness, shutdown by signals, the TLS provider, the clock.
//! It knows nothing of models or Kubernetes.

pub mod admin;
pub mod args;
pub mod clock;
pub mod logs;
pub mod panics;
pub mod readiness;
pub mod shutdown;
pub mod tls;
