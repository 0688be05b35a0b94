//! `train`: runs the stages of a settings file.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;

use crate::model::DeviceChoice;
use crate::train::group::{Group, Place};
use crate::train::{Outcome, Run, Settings};

/// Trains a model as a settings file says.
#[derive(Debug, Args)]
pub(super) struct TrainArgs {
    /// The settings.
    #[arg(long)]
    config: PathBuf,
    /// Folder for checkpoints, journal and model, instead of the settings' own.
    #[arg(long)]
    output: Option<PathBuf>,
    /// Continue from the newest checkpoint in the output folder, if there is one.
    #[arg(long)]
    resume: bool,
    /// Where to compute, instead of the settings' own: cpu, cuda or cuda:NUMBER.
    #[arg(long)]
    device: Option<DeviceChoice>,
    /// Threads of this process, instead of the settings' own.
    #[arg(long)]
    threads: Option<usize>,
    /// This process among those that train together, from 0.
    #[arg(long, env = "JOB_COMPLETION_INDEX", default_value_t = 0)]
    rank: usize,
    /// Number of processes that train together.
    #[arg(long, env = "WORLD_SIZE", default_value_t = 1)]
    world_size: usize,
    /// Where rank 0 listens for the others.
    #[arg(long, env = "RENDEZVOUS", default_value = "127.0.0.1:29400")]
    rendezvous: String,
}

impl TrainArgs {
    /// Trains to the end, or until a first Ctrl-C or SIGTERM, which saves a checkpoint.
    ///
    /// # Errors
    /// Names the setting, file, record or step that failed.
    pub(super) fn run(self) -> anyhow::Result<()> {
        shell::logs::init("info", shell::logs::Format::Text)?;
        alone_on_each_thread()?;
        let mut settings = Settings::read(&self.config)?;
        settings.output = self.output.unwrap_or(settings.output);
        settings.device = self.device.unwrap_or(settings.device);
        settings.threads = self.threads.or(settings.threads);
        let place = Place {
            rank: self.rank,
            world: self.world_size,
            rendezvous: self.rendezvous,
        };
        let stop = Arc::new(AtomicBool::new(false));
        listen(Arc::clone(&stop))?;
        let mut run = Run::new(settings, Group::join(place)?, self.resume, stop)?;
        match run.run()? {
            Outcome::Done(Some(accuracy)) => {
                println!(
                    "done: {:.4} of held-out answers exactly right",
                    accuracy.all.share()
                );
            }
            Outcome::Done(None) => println!("done"),
            Outcome::Stopped(step) => println!("stopped after step {step}; --resume continues"),
        }
        Ok(())
    }
}

/// Starts this program anew with candle's own thread pool off, unless it is. A step runs one
/// pass on each thread; candle's pool, which reads its size from the environment when it is
/// first used, would make each pass wait at a spinning barrier for cores that the others use
/// (measured: four times slower).
pub(super) fn alone_on_each_thread() -> anyhow::Result<()> {
    use std::os::unix::process::CommandExt;
    const POOL: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(POOL).is_some() {
        return Ok(());
    }
    let mut again = std::process::Command::new(std::env::current_exe()?);
    let error = again
        .args(std::env::args_os().skip(1))
        .env(POOL, "1")
        .exec();
    Err(anyhow::Error::new(error).context("start again with one candle thread"))
}

/// Sets `stop` at the first signal; a second one ends the process as usual.
fn listen(stop: Arc<AtomicBool>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            let mut terminate =
                tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
            tokio::select! {
                interrupted = tokio::signal::ctrl_c() => interrupted?,
                _ = terminate.recv() => {}
            }
            if stop.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
            tokio::signal::ctrl_c().await?;
            std::process::exit(130);
            #[allow(unreachable_code)]
            Ok::<_, std::io::Error>(())
        })
    });
    Ok(())
}
