//! The router's process: parse the command line, start, drain on a signal.

use clap::Parser as _;
use llava_router::Router;
use llava_router::cli::{Cli, Command};

/// How much free memory at the end of its heap the allocator keeps, bytes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT: i32 = 64 << 20;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Cli {
        command,
        router: args,
    } = Cli::parse();
    if let Some(Command::Ask(question)) = command {
        return Ok(question.run(&mut std::io::stdout()).await?);
    }
    keep_memory();
    args.shell.start()?;
    let stop = shell::shutdown::on_signals()?;
    let router = Router::start(args).await?;
    stop.cancelled().await;
    router.drain().await;
    Ok(())
}

/// A body of a megabyte comes and goes with each request. By default glibc gives
/// such memory back to the kernel at once, and the next request gets it page by
/// page and zeroed: a third of what a body costs.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[expect(unsafe_code, reason = "a call into C")]
fn keep_memory() {
    // SAFETY: it takes two numbers, and changes settings of the allocator alone.
    unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT) };
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_memory() {}
