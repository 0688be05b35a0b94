//! How many tokens of keys and values fit: what is asked for, or most of what
//! the process, or the device that it runs on, may still take.

use std::fs;

/// Share of the free memory that keys and values may take when nothing is said.
const SHARE: f64 = 0.7;

/// What sequences get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Sequences that run at once.
    pub slots: usize,
    /// Longest sequence in tokens.
    pub context: usize,
    /// Tokens that all slots may hold together.
    pub kv_tokens: usize,
}

/// What is wished for, and what there is for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Bytes that the flag gives.
    pub asked: Option<usize>,
    /// Bytes that are free, where the system tells.
    pub free: Option<u64>,
    /// Bytes of one token.
    pub bytes_per_token: usize,
    /// The cache takes the memory of every slot at once, whether it fills or not.
    pub whole: bool,
}

impl Room {
    /// As much of `slots` sequences of `context` tokens as there is room for. Where memory is taken as
    /// it fills, slots share what there is; where it is taken at once, there are fewer of them.
    #[must_use]
    pub(super) fn plan(self, slots: usize, context: usize) -> Plan {
        let kv_tokens = self.tokens(slots * context);
        let context = context.min(kv_tokens);
        if !self.whole {
            return Plan {
                slots,
                context,
                kv_tokens,
            };
        }
        let slots = (kv_tokens / context.max(1)).clamp(1, slots);
        Plan {
            slots,
            context,
            kv_tokens: slots * context,
        }
    }

    fn tokens(self, most: usize) -> usize {
        let bytes = match (self.asked, self.free) {
            (Some(asked), _) => asked,
            (None, Some(free)) => (free as f64 * SHARE) as usize,
            (None, None) => return most,
        };
        (bytes / self.bytes_per_token.max(1)).min(most)
    }
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

    fn room(asked: Option<usize>, free: Option<u64>) -> Room {
        Room {
            asked,
            free,
            bytes_per_token: 10,
            whole: false,
        }
    }

    #[test]
    fn what_is_asked_for_wins_and_nothing_exceeds_the_slots() {
        let tokens = |asked, free| room(asked, free).plan(5, 100).kv_tokens;
        assert_eq!(tokens(Some(1000), Some(10)), 100);
        assert_eq!(tokens(None, Some(1000)), 70);
        assert_eq!(tokens(None, None), 500);
        assert_eq!(tokens(Some(1_000_000), None), 500);
    }

    #[test]
    fn slots_that_fill_share_what_there_is_and_slots_taken_at_once_are_fewer() {
        let shared = room(Some(2500), None);
        let whole = Room {
            whole: true,
            ..shared
        };
        let plan = |slots, context, kv_tokens| Plan {
            slots,
            context,
            kv_tokens,
        };
        assert_eq!(shared.plan(5, 100), plan(5, 100, 250));
        assert_eq!(whole.plan(5, 100), plan(2, 100, 200));
        // One sequence always runs, a shorter one if need be.
        assert_eq!(whole.plan(5, 1000), plan(1, 250, 250));
        assert_eq!(whole.plan(2, 100), plan(2, 100, 200));
    }

    #[test]
    fn the_kernels_figure_is_in_kibibytes() {
        let text = "MemTotal:       100 kB\nMemAvailable:   24 kB\n";
        assert_eq!(available(text), Some(24 * 1024));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
    }
}
