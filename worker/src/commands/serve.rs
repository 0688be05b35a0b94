//! `llava-worker serve`.

use tokio::runtime::Builder;

use crate::serve::{self, ServeArgs};

/// Threads for decoding images and rendering prompts.
const BLOCKING_THREADS: usize = 8;

/// Serves until the process is asked to stop.
pub(super) fn run(args: ServeArgs) -> anyhow::Result<()> {
    args.shell.start()?;
    let termination_log = args.termination_log.clone();
    let runtime = Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()?;
    let result = runtime.block_on(serve::run(args));
    // Neither a model that is still loading nor a stuck engine is waited for.
    runtime.shutdown_background();
    if let Err(error) = &result {
        serve::write_termination_log(termination_log.as_ref(), error);
    }
    Ok(result?)
}
