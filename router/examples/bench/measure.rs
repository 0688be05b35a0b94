//! What the kernel knows of a process.

use std::process::{Child, Command, Stdio};

/// A process on one CPU; killed on drop.
pub(crate) struct Pinned(Child);

impl Pinned {
    /// Starts `program` on `cpu`.
    pub(crate) fn start(cpu: &str, program: &str, args: &[String]) -> Self {
        let child = Command::new("taskset")
            .args(["-c", cpu, program])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("taskset is needed");
        Self(child)
    }

    /// Nanoseconds on a CPU so far, all threads and children (a peer may be a
    /// Python process that starts another).
    pub(crate) fn cpu_nanos(&self) -> u64 {
        family(self.0.id()).into_iter().map(cpu_nanos).sum()
    }

    /// Resident bytes.
    pub(crate) fn memory(&self) -> u64 {
        family(self.0.id()).into_iter().map(memory).sum()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let children =
        std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    for child in children.split_whitespace() {
        all.extend(family(child.parse().unwrap()));
    }
    all
}

fn cpu_nanos(pid: u32) -> u64 {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return 0;
    };
    tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok())
        .filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .sum()
}

fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
