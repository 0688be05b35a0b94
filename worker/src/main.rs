//! The `llava-worker` program: serves, inspects, trains and converts LLaVA models.

use clap::Parser;

fn main() -> anyhow::Result<()> {
    llava_worker::commands::Cli::parse().run()
}
