//! One run: every target under every load, in turn, several rounds, and the
//! median of each figure in a table.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};

use clap::Args;

use crate::load::{Scenario, Seen};
use crate::measure::Pinned;

/// The CPU of workers and load, and the CPU of what is measured.
const CPUS: (&str, &str) = ("0", "1");
const WORKERS: u16 = 4;

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The router's binary
    #[arg(long)]
    router: String,
    /// A peer as `name=command`, with {port} and {workers}; repeat for several
    #[arg(long)]
    peer: Vec<String>,
    /// Times that everything is measured
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Length of each measurement
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// First port
    #[arg(long, default_value_t = 31_000)]
    port: u16,
}

/// A column of the table: its heading, and how it is read.
struct Column {
    heading: &'static str,
    scenario: Scenario,
    figure: fn(&Figures) -> f64,
    digits: usize,
}

/// What one measurement gave.
#[derive(Clone, Debug)]
struct Figures {
    seen: Seen,
    cpu_nanos: f64,
    grown: f64,
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
const COLUMNS: [Column; 13] = [
    Column {
        heading: "tiny req/s",
        scenario: Scenario::Tiny,
        figure: |f| f.seen.count as f64 / f.seen.seconds,
        digits: 0,
    },
    Column {
        heading: "tiny CPU µs/req",
        scenario: Scenario::Tiny,
        figure: |f| f.cpu_nanos / 1e3 / f.seen.count as f64,
        digits: 1,
    },
    Column {
        heading: "c=1 p50 ms",
        scenario: Scenario::TinyOne,
        figure: |f| f.seen.p50,
        digits: 3,
    },
    Column {
        heading: "TTFB p50 ms",
        scenario: Scenario::Moderate,
        figure: |f| f.seen.p50,
        digits: 2,
    },
    Column {
        heading: "TTFB p99 ms",
        scenario: Scenario::Moderate,
        figure: |f| f.seen.p99,
        digits: 2,
    },
    Column {
        heading: "event p50 ms",
        scenario: Scenario::Events,
        figure: |f| f.seen.p50,
        digits: 3,
    },
    Column {
        heading: "event p99 ms",
        scenario: Scenario::Events,
        figure: |f| f.seen.p99,
        digits: 2,
    },
    Column {
        heading: "CPU µs/event",
        scenario: Scenario::Events,
        figure: |f| f.cpu_nanos / 1e3 / f.seen.count as f64,
        digits: 1,
    },
    Column {
        heading: "flat events/s",
        scenario: Scenario::Flat,
        figure: |f| f.seen.count as f64 / f.seen.seconds,
        digits: 0,
    },
    Column {
        heading: "1 MiB req/s",
        scenario: Scenario::Mib,
        figure: |f| f.seen.count as f64 / f.seen.seconds,
        digits: 0,
    },
    Column {
        heading: "1 MiB CPU ms",
        scenario: Scenario::Mib,
        figure: |f| f.cpu_nanos / 1e6 / f.seen.count as f64,
        digits: 3,
    },
    Column {
        heading: "1 MiB c=1 p50 ms",
        scenario: Scenario::MibOne,
        figure: |f| f.seen.p50,
        digits: 2,
    },
    Column {
        heading: "KiB/idle stream",
        scenario: Scenario::Idle,
        figure: |f| f.grown / 1024.0 / f.seen.count as f64,
        digits: 1,
    },
];

pub(crate) fn run(options: &Options) {
    let me = std::env::current_exe().unwrap().display().to_string();
    let at = |offset: u16| SocketAddr::from(([127, 0, 0, 1], options.port + offset));
    let workers: Vec<SocketAddr> = (0..WORKERS).map(at).collect();
    let _running: Vec<Pinned> = workers
        .iter()
        .map(|worker| Pinned::start(CPUS.0, &me, &["worker".to_owned(), worker.to_string()]))
        .collect();
    for worker in &workers {
        await_port(*worker);
    }
    let mut table: BTreeMap<usize, Vec<Vec<f64>>> = BTreeMap::new();
    let targets = targets(options, &me, &workers);
    for round in 0..options.rounds {
        for (index, target) in targets.iter().enumerate() {
            let address = at(100 + u16::try_from(round * targets.len() + index).unwrap() * 2);
            eprintln!("round {round}: {}", target.name);
            let figures = measure(options, &me, target, address, workers[0]);
            table.entry(index).or_default().push(figures);
        }
    }
    print(&targets, &table);
}

struct Target {
    name: String,
    /// Nothing stands for the workers themselves.
    command: Option<(String, Vec<String>)>,
}

fn targets(options: &Options, me: &str, workers: &[SocketAddr]) -> Vec<Target> {
    let addresses: Vec<String> = workers.iter().map(SocketAddr::to_string).collect();
    let mut floor = vec!["floor".to_owned(), "{address}".to_owned()];
    floor.extend(addresses.clone());
    let mut router = [
        "--listen={address}",
        "--admin-listen={admin}",
        "--log-filter=warn",
        "--model=m",
        "--no-page",
    ]
    .map(str::to_owned)
    .to_vec();
    router.extend(
        addresses
            .iter()
            .map(|worker| format!("--worker=http://{worker}")),
    );
    let mut targets = vec![
        Target {
            name: "direct".to_owned(),
            command: None,
        },
        Target {
            name: "floor".to_owned(),
            command: Some((me.to_owned(), floor)),
        },
        Target {
            name: "llava-router".to_owned(),
            command: Some((options.router.clone(), router)),
        },
    ];
    for peer in &options.peer {
        let (name, command) = peer.split_once('=').expect("--peer name=command");
        let urls: Vec<String> = addresses
            .iter()
            .map(|worker| format!("http://{worker}"))
            .collect();
        let mut words = command.split_whitespace().flat_map(|word| {
            if word == "{workers}" {
                urls.clone()
            } else {
                vec![word.to_owned()]
            }
        });
        let program = words.next().unwrap();
        targets.push(Target {
            name: name.to_owned(),
            command: Some((program, words.collect())),
        });
    }
    targets
}

fn measure(
    options: &Options,
    me: &str,
    target: &Target,
    address: SocketAddr,
    direct: SocketAddr,
) -> Vec<f64> {
    let mut admin = address;
    admin.set_port(address.port() + 1);
    let mut taken: Vec<(Scenario, Figures)> = Vec::new();
    COLUMNS
        .iter()
        .map(|column| {
            if taken
                .last()
                .is_none_or(|(scenario, _)| *scenario != column.scenario)
            {
                // A fresh process for each load: memory of the last one tells nothing.
                let process = target.command.as_ref().map(|(program, args)| {
                    let fill = |arg: &String| {
                        arg.replace("{address}", &address.to_string())
                            .replace("{admin}", &admin.to_string())
                            .replace("{port}", &address.port().to_string())
                            .replace("{metrics}", &admin.port().to_string())
                    };
                    let args: Vec<String> = args.iter().map(fill).collect();
                    Pinned::start(CPUS.1, program, &args)
                });
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

fn load(
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

fn await_port(address: SocketAddr) {
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

fn print(targets: &[Target], table: &BTreeMap<usize, Vec<Vec<f64>>>) {
    let medians: Vec<Vec<f64>> = table
        .values()
        .map(|rounds| {
            (0..COLUMNS.len())
                .map(|column| {
                    let mut values: Vec<f64> = rounds.iter().map(|round| round[column]).collect();
                    values.sort_by(f64::total_cmp);
                    values[values.len() / 2]
                })
                .collect()
        })
        .collect();
    let headings: Vec<&str> = COLUMNS.iter().map(|column| column.heading).collect();
    println!("| target | {} |", headings.join(" | "));
    println!("|---|{}", "---|".repeat(COLUMNS.len()));
    for (target, row) in targets.iter().zip(&medians) {
        let cells: Vec<String> = row
            .iter()
            .zip(&COLUMNS)
            .map(|(value, c)| format!("{value:.*}", c.digits))
            .collect();
        println!("| {} | {} |", target.name, cells.join(" | "));
    }
    for (target, row) in targets.iter().zip(&medians).skip(2) {
        let cells: Vec<String> = row
            .iter()
            .zip(&medians[1])
            .map(|(value, floor)| format!("{:.2}", value / floor))
            .collect();
        println!("| {} / floor | {} |", target.name, cells.join(" | "));
    }
}
