//! The router's benchmark: a fast fake worker, a load generator, a bare hyper
//! pass-through called `floor`, and a run that pins them, drives them in turn
//! and prints one table. None of it ships.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark stops at the first surprise"
)]

mod floor;
mod load;
mod measure;
mod overload;
mod run;
mod table;
mod targets;
mod worker;

use std::net::SocketAddr;

use clap::Parser;

/// Measures the router against a bare pass-through and its peers
#[derive(Debug, Parser)]
enum Command {
    /// Serve as a fake worker
    Worker { listen: SocketAddr, slots: u32 },
    /// Pass requests through, and nothing else
    Floor {
        listen: SocketAddr,
        workers: Vec<SocketAddr>,
    },
    /// Put one kind of load on an address and print what was seen as JSON
    Load {
        scenario: load::Scenario,
        address: SocketAddr,
        seconds: u64,
    },
    /// Measure everything
    Run(run::Options),
    /// Offer the router ten times what its workers can do
    Overload(overload::Options),
}

fn main() {
    match Command::parse() {
        Command::Worker { listen, slots } => worker::run(listen, slots),
        Command::Floor { listen, workers } => floor::run(listen, &workers),
        Command::Load {
            scenario,
            address,
            seconds,
        } => {
            println!(
                "{}",
                serde_json::to_string(&load::run(scenario, address, seconds)).unwrap()
            );
        }
        Command::Run(options) => run::run(&options),
        Command::Overload(options) => overload::run(&options),
    }
}

/// Microseconds since the epoch: worker and load generator compare them.
#[expect(
    clippy::disallowed_methods,
    reason = "two processes compare their clocks"
)]
fn unix_micros() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    u64::try_from(since.unwrap().as_micros()).unwrap()
}
