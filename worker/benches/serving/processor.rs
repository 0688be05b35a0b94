//! Who uses the processors: CPU time of a process, and processors of its own.

use std::process::Command;
use std::time::Duration;

/// CPU time that a process has taken, its threads together.
pub(crate) fn time(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name, in parentheses, may hold spaces; user and system time are fields 14 and 15.
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .map(|ticks| ticks.parse::<u64>().unwrap())
        .sum();
    // Linux counts in hundredths of a second wherever user programs see it.
    Duration::from_millis(ticks * 10)
}

/// Keeps all threads of a process, and those that it will start, to these processors.
pub(crate) fn keep_to(pid: u32, processors: &str) {
    let done = Command::new("taskset")
        .args(["--all-tasks", "--pid", "--cpu-list", processors])
        .arg(pid.to_string())
        .output()
        .unwrap();
    assert!(done.status.success(), "{done:?}");
}
