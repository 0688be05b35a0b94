//! Ten times more than the workers can do, for a minute: what is answered then,
//! against what is answered when the workers are just busy, and how the router's
//! memory moves.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;

use crate::load::Scenario;
use crate::measure::Pinned;
use crate::run::{CPUS, WORKERS, await_port, load, start_workers};
use crate::targets::{Target, router_args};

/// Slots of each worker; the load generator counts on them.
const SLOTS: &str = "8";
/// Until queues and pools have grown to their size.
const SETTLED: usize = 5;

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The router's binary
    #[arg(long)]
    router: String,
    /// How long it lasts
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// First port
    #[arg(long, default_value_t = 31_500)]
    port: u16,
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
pub(crate) fn run(options: &Options) {
    let me = std::env::current_exe().unwrap().display().to_string();
    let at = |offset: u16| SocketAddr::from(([127, 0, 0, 1], options.port + offset));
    let workers: Vec<SocketAddr> = (0..WORKERS).map(at).collect();
    let _workers = start_workers(&me, &workers, SLOTS);
    let address = at(100);
    let router = Target {
        name: "llava-router".to_owned(),
        command: Some((options.router.clone(), router_args(&workers))),
    };
    let (program, args) = router.at(address).unwrap();
    let router = Pinned::start(CPUS.1, &program, &args);
    await_port(address);
    // New workers get their full share after ten seconds.
    load(&me, Scenario::Peak, address, 12, None);
    let peak = load(&me, Scenario::Peak, address, 10, None);
    let done = AtomicBool::new(false);
    let (seen, memory) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let mut memory = Vec::new();
            while !done.load(Ordering::Relaxed) {
                memory.push(router.memory());
                std::thread::park_timeout(Duration::from_secs(1));
            }
            memory
        });
        let seen = load(&me, Scenario::Overload, address, options.seconds, None);
        done.store(true, Ordering::Relaxed);
        (seen, watching.join().unwrap())
    });
    let rate = peak.count as f64 / peak.seconds;
    let mib = |bytes: Option<&u64>| *bytes.unwrap_or(&0) as f64 / f64::from(1 << 20);
    let settled = &memory[SETTLED.min(memory.len() - 1)..];
    let answered = seen.count as f64 / seen.seconds;
    println!("| | busy | ten times too much |");
    println!("|---|---|---|");
    println!(
        "| offered per second | {rate:.0} | {:.0} |",
        (seen.count + seen.refused) as f64 / seen.seconds
    );
    println!(
        "| answered per second | {rate:.0} | {answered:.0} ({:.0} %) |",
        100.0 * answered / rate
    );
    println!(
        "| answered per second in the worst five seconds | | {:.0} ({:.0} %) |",
        seen.worst,
        100.0 * seen.worst / rate
    );
    println!(
        "| time to the end, p50 / p99 ms | {:.0} / {:.0} | {:.0} / {:.0} |",
        peak.p50, peak.p99, seen.p50, seen.p99
    );
    println!(
        "| refused, of these without Retry-After | {} | {}, {} |",
        peak.refused, seen.refused, seen.silent
    );
    println!("| broken | {} | {} |", peak.errors, seen.errors);
    println!(
        "| memory in the sixth second, at most after it, MiB | | {:.1}, {:.1} |",
        mib(settled.first()),
        mib(settled.iter().max())
    );
}
