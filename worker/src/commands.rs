//! The command line: one module per subcommand, each with its `Args` and a
//! `run` that the program calls.

use clap::{Parser, Subcommand};

mod bench;
mod chat;
mod convert;
mod eval;
mod fetch;
mod generate;
mod inspect;
mod make_data;
mod model_args;
mod sampling_args;
mod serve;
mod train;

/// Serves, inspects, trains and converts LLaVA models.
#[derive(Debug, Parser)]
#[command(name = "llava-worker", version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<crate::serve::ServeArgs>),
    Generate(generate::Args),
    Chat(chat::Args),
    Bench(bench::Args),
    Eval(eval::EvalArgs),
    Convert(convert::ConvertArgs),
    Fetch(fetch::FetchArgs),
    Inspect(inspect::InspectArgs),
    MakeData(make_data::MakeDataArgs),
    Train(train::TrainArgs),
}

impl Cli {
    /// Runs the chosen subcommand to its end.
    pub fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Serve(args) => serve::run(*args),
            Command::Generate(args) => args.run(),
            Command::Chat(args) => args.run(),
            Command::Bench(args) => args.run(),
            Command::Eval(args) => args.run(),
            Command::Convert(args) => args.run(),
            Command::Fetch(args) => args.run(),
            Command::Inspect(args) => args.run(),
            Command::MakeData(args) => args.run(),
            Command::Train(args) => args.run(),
        }
    }
}
