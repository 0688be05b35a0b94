//! The program: a router, or a question to one.

use clap::{Parser, Subcommand};

use crate::args::RouterArgs;
use crate::ask::AskArgs;

/// Dispatches OpenAI-style and LLaVA-style requests to the least loaded worker
#[derive(Clone, Debug, Parser)]
#[command(name = "llava-router", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// Something else than to be a router.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// How to be one.
    #[command(flatten)]
    pub router: RouterArgs,
}

/// What the program does beside routing.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Asks a router about images, and prints the answer as it comes
    Ask(AskArgs),
}
