//! What serving costs and how it bears load, measured on the real program over
//! real sockets: `make bench-worker`. Each part is a file; each figure is a row
//! of one table, with what is wanted of it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark stops at the first surprise"
)]

mod batch;
#[path = "../../tests/serve/checkpoint.rs"]
mod checkpoint;
mod large;
mod leaving;
mod overload;
mod processor;
mod streams;
mod table;
mod trouble;
#[path = "../../tests/serve/troubles.rs"]
mod troubles;
mod wire;
#[path = "../../tests/serve/worker.rs"]
#[allow(dead_code, reason = "the tests ask for more")]
mod worker;

use clap::{Parser, ValueEnum};

/// Measures `llava-worker serve`
#[derive(Debug, Parser)]
struct Options {
    /// Parts to measure; all when left out
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// Cargo says so
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Tokens per second by batch size, demo checkpoint
    Batch,
    /// Callers that leave, demo checkpoint
    Leaving,
    /// Ten times the load that can be served, demo checkpoint
    Overload,
    /// 10,000 requests of every kind, demo checkpoint
    Trouble,
    /// Scheduler overhead and first tokens, random weights in the shape of a 1.1 B model
    Large,
}

#[tokio::main]
async fn main() {
    let options = Options::parse();
    let mut table = table::Table::default();
    for &part in Part::value_variants() {
        if !options.only.is_empty() && !options.only.contains(&part) {
            continue;
        }
        eprintln!("measuring: {part:?}");
        match part {
            Part::Batch => batch::measure(&mut table).await,
            Part::Leaving => leaving::measure(&mut table).await,
            Part::Overload => overload::measure(&mut table).await,
            Part::Trouble => trouble::measure(&mut table).await,
            Part::Large => large::measure(&mut table).await,
        }
    }
    println!("{table}");
    if table.misses() > 0 {
        eprintln!("{} figures miss what is wanted", table.misses());
        std::process::exit(1);
    }
}
