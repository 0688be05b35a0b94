//! One run: every target under every load, in turn, several rounds, and the
//! median of each figure in a table.

use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use clap::Args;

use crate::load::{Scenario, Seen};
use crate::measure::Pinned;
use crate::table::{COLUMNS, Figures, Table};
use crate::targets::{Target, targets};

/// The CPU of workers and load, and the CPU of what is measured.
pub(crate) const CPUS: (&str, &str) = ("0", "1");
pub(crate) const WORKERS: u16 = 4;

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The router's binary
    #[arg(long)]
    pub(crate) router: String,
    /// A peer as `name=command`, with {port} and {workers}; repeat for several
    #[arg(long)]
    pub(crate) peer: Vec<String>,
    /// Times that everything is measured
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Length of each measurement
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// File that keeps the rounds, and counts those of earlier runs in
    #[arg(long)]
    results: Option<PathBuf>,
    /// First port
    #[arg(long, default_value_t = 31_000)]
    port: u16,
}

pub(crate) fn run(options: &Options) {
    let me = std::env::current_exe().unwrap().display().to_string();
    let at = |offset: u16| SocketAddr::from(([127, 0, 0, 1], options.port + offset));
    let workers: Vec<SocketAddr> = (0..WORKERS).map(at).collect();
    // Silent streams keep their slots for ten minutes: those of some rounds together.
    let _running = start_workers(&me, &workers, "65536");
    let results = options.results.as_deref();
    let mut table = Table::read(results);
    let targets = targets(options, &me, &workers);
    for round in 0..options.rounds {
        for (index, target) in targets.iter().enumerate() {
            let address = at(100 + u16::try_from(round * targets.len() + index).unwrap() * 2);
            eprintln!("round {round}: {}", target.name);
            let figures = measure(options, &me, target, address, workers[0]);
            table.take(&target.name, figures, results);
        }
    }
    let names: Vec<&str> = targets.iter().map(|target| target.name.as_str()).collect();
    table.print(&names);
}

/// Fake workers with this many slots each, on the load's CPU.
pub(crate) fn start_workers(me: &str, workers: &[SocketAddr], slots: &str) -> Vec<Pinned> {
    let start = |worker: &SocketAddr| {
        let args = ["worker".to_owned(), worker.to_string(), slots.to_owned()];
        let process = Pinned::start(CPUS.0, me, &args);
        await_port(*worker);
        process
    };
    workers.iter().map(start).collect()
}

fn measure(
    options: &Options,
    me: &str,
    target: &Target,
    address: SocketAddr,
    direct: SocketAddr,
) -> Vec<f64> {
    let mut taken: Vec<(Scenario, Figures)> = Vec::new();
    COLUMNS
        .iter()
        .map(|column| {
            if taken
                .last()
                .is_none_or(|(scenario, _)| *scenario != column.scenario)
            {
                // A fresh process for each load: memory of the last one tells nothing.
                let process = target
                    .at(address)
                    .map(|(program, args)| Pinned::start(CPUS.1, &program, &args));
                let address = if process.is_some() { address } else { direct };
                await_port(address);
                taken.push((
                    column.scenario,
                    figures(options, me, column.scenario, address, process.as_ref()),
                ));
            }
            (column.figure)(&taken.last().unwrap().1)
        })
        .collect()
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn figures(
    options: &Options,
    me: &str,
    scenario: Scenario,
    address: SocketAddr,
    process: Option<&Pinned>,
) -> Figures {
    // Warm connections, allocator and branch predictors first.
    if scenario != Scenario::Idle {
        load(me, scenario, address, 1, None);
    }
    let cpu = process.map_or(0, Pinned::cpu_nanos);
    let memory = process.map_or(0, Pinned::memory);
    let mut grown = 0;
    let seen = load(
        me,
        scenario,
        address,
        options.seconds,
        Some(&mut || {
            grown = process.map_or(0, Pinned::memory).saturating_sub(memory);
        }),
    );
    assert!(seen.errors * 100 <= seen.count, "{scenario:?}: {seen:?}");
    Figures {
        seen,
        cpu_nanos: (process.map_or(0, Pinned::cpu_nanos) - cpu) as f64,
        grown: grown as f64,
    }
}

pub(crate) fn load(
    me: &str,
    scenario: Scenario,
    address: SocketAddr,
    seconds: u64,
    mut held: Option<&mut dyn FnMut()>,
) -> Seen {
    let name = serde_json::to_value(scenario).unwrap();
    let mut child = Command::new("taskset")
        .args([
            "-c",
            CPUS.0,
            me,
            "load",
            name.as_str().unwrap(),
            &address.to_string(),
            &seconds.to_string(),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut seen = None;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if line == "held" {
            if let Some(held) = held.as_mut() {
                held();
            }
            drop(child.stdin.take());
        } else {
            seen = Some(serde_json::from_str(&line).unwrap());
        }
    }
    child.wait().unwrap();
    seen.expect("the load generator failed")
}

pub(crate) fn await_port(address: SocketAddr) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    for _ in 0..1200 {
        if answers(address) {
            return;
        }
        runtime.block_on(async { tokio::time::sleep(std::time::Duration::from_millis(50)).await });
    }
    panic!("nothing answers at {address}");
}

/// Whether a chat is answered: a port that is open may not be ready yet.
fn answers(address: SocketAddr) -> bool {
    use std::io::{Read as _, Write as _};
    let Ok(mut stream) = TcpStream::connect(address) else {
        return false;
    };
    let body = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: b\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut start = [0; 12];
    stream.write_all(request.as_bytes()).is_ok()
        && stream.read_exact(&mut start).is_ok()
        && &start == b"HTTP/1.1 200"
}
