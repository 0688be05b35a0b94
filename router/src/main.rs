//! The router's process: parse the command line, start, drain on a signal.

use clap::Parser as _;
use llava_router::Router;
use llava_router::cli::{Cli, Command};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Cli {
        command,
        router: args,
    } = Cli::parse();
    if let Some(Command::Ask(question)) = command {
        return Ok(question.run(&mut std::io::stdout()).await?);
    }
    args.shell.start()?;
    let stop = shell::shutdown::on_signals()?;
    let router = Router::start(args).await?;
    stop.cancelled().await;
    router.drain().await;
    Ok(())
}
