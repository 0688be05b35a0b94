//! How many tokens of keys and values fit: what is asked for, or most of what
//! the process may still take.

use std::fs;

/// Share of the free memory that keys and values may take when nothing is said.
const SHARE: f64 = 0.7;

/// Tokens that all slots may hold together.
#[must_use]
pub(super) fn kv_tokens(
    asked: Option<usize>,
    free: Option<u64>,
    bytes_per_token: usize,
    most: usize,
) -> usize {
    let bytes = match (asked, free) {
        (Some(asked), _) => asked,
        (None, Some(free)) => (free as f64 * SHARE) as usize,
        (None, None) => return most,
    };
    (bytes / bytes_per_token.max(1)).min(most)
}

/// Bytes that the process may still take: the least of what the machine and
/// its control group leave. `None` where neither can be read.
#[must_use]
pub(super) fn free() -> Option<u64> {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let group = number("/sys/fs/cgroup/memory.max")
        .zip(number("/sys/fs/cgroup/memory.current"))
        .map(|(most, now)| most.saturating_sub(now));
    let machine = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| available(&text));
    match (group, machine) {
        (Some(group), Some(machine)) => Some(group.min(machine)),
        (group, machine) => group.or(machine),
    }
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_wins_and_nothing_exceeds_the_slots() {
        assert_eq!(kv_tokens(Some(1000), Some(10), 10, 500), 100);
        assert_eq!(kv_tokens(None, Some(1000), 10, 500), 70);
        assert_eq!(kv_tokens(None, None, 10, 500), 500);
        assert_eq!(kv_tokens(Some(1_000_000), None, 10, 500), 500);
    }

    #[test]
    fn the_kernels_figure_is_in_kibibytes() {
        let text = "MemTotal:       100 kB\nMemAvailable:   24 kB\n";
        assert_eq!(available(text), Some(24 * 1024));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
    }
}
