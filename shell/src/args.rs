//! The flags that every process has.

use std::net::SocketAddr;

use clap::Args;

use crate::{logs, panics};

/// Flags for logs and the admin port; flatten them into a program's own.
#[derive(Args, Clone, Debug)]
pub struct ShellArgs {
    /// Which log lines are written, such as `info` or `info,llava_router=debug`
    #[arg(long, env = "LLAVA_LOG", default_value = "info", value_name = "FILTER")]
    pub log_filter: String,

    /// How log lines look
    #[arg(long, env = "LLAVA_LOG_FORMAT", value_enum, default_value_t)]
    pub log_format: logs::Format,

    /// Address of /livez, /readyz and /metrics
    #[arg(long, default_value = "0.0.0.0:9090", value_name = "ADDR")]
    pub admin_listen: SocketAddr,
}

impl ShellArgs {
    /// Chooses the TLS provider and starts logging, panics included: the first thing `main` does.
    ///
    /// # Errors
    /// When the log filter does not parse.
    pub fn start(&self) -> Result<(), logs::InvalidFilter> {
        crate::tls::install_provider();
        logs::init(&self.log_filter, self.log_format)?;
        panics::into_log();
        Ok(())
    }
}
