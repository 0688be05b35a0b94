//! Shutdown in two steps: the first SIGTERM or SIGINT asks for a drain, the
//! second ends the process at once.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The exit status of a process that a second signal ended.
const EXIT_FORCED: i32 = 130;

/// Cancelled when the process was asked to stop. Clone it into every task.
///
/// # Errors
/// When the signal handlers cannot be installed.
pub fn on_signals() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let stop = token.clone();
    tokio::spawn(async move {
        let name = first(&mut terminate, &mut interrupt).await;
        tracing::info!(
            signal = name,
            "draining; a second signal ends the process at once"
        );
        stop.cancel();
        let name = first(&mut terminate, &mut interrupt).await;
        tracing::warn!(signal = name, "second signal: ending without a drain");
        std::process::exit(EXIT_FORCED);
    });
    Ok(token)
}

async fn first(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
