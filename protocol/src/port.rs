//! The ports that processes listen on and that Services and probes name.

/// The API of router and worker.
pub const API: u16 = 8000;
/// Name of the API port in Pods and Services.
pub const API_NAME: &str = "http";
/// `/livez`, `/readyz`, `/metrics` of every process.
pub const ADMIN: u16 = 9090;
/// Name of the admin port in Pods and Services.
pub const ADMIN_NAME: &str = "admin";
