//! How many tokens of keys and values fit: what is asked for, or most of what
//! the process, or the device that it runs on, may still take.

use std::fs;
use std::path::Path;

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

/// Where a version of control groups says what a group may take and what it holds.
struct GroupFiles {
    folder: &'static str,
    limit: &'static str,
    held: &'static str,
    /// Pages of files in `memory.stat`, used lately or not.
    pages: [&'static str; 2],
}

const GROUPS: [GroupFiles; 2] = [
    GroupFiles {
        folder: "sys/fs/cgroup",
        limit: "memory.max",
        held: "memory.current",
        pages: ["inactive_file", "active_file"],
    },
    GroupFiles {
        folder: "sys/fs/cgroup/memory",
        limit: "memory.limit_in_bytes",
        held: "memory.usage_in_bytes",
        pages: ["total_inactive_file", "total_active_file"],
    },
];

impl GroupFiles {
    /// What the group leaves. Pages of files count as free: a group that is full of the
    /// checkpoint, read a moment ago, lets go of it when memory is asked for.
    fn free(&self, root: &Path) -> Option<u64> {
        let read = |name: &str| fs::read_to_string(root.join(self.folder).join(name)).ok();
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
        let held = number(self.held)?;
        let stat = read("memory.stat").unwrap_or_default();
        let pages = stat.lines().filter_map(|line| {
            let (name, bytes) = line.split_once(' ')?;
            let bytes = bytes.trim().parse::<u64>().ok()?;
            self.pages.contains(&name).then_some(bytes)
        });
        let held = held.saturating_sub(pages.sum());
        Some(number(self.limit)?.saturating_sub(held))
    }
}

/// Bytes that the process may still take: the least of what the machine and
/// its control group leave. `None` where neither can be read.
#[must_use]
pub(super) fn free() -> Option<u64> {
    free_under(Path::new("/"))
}

fn free_under(root: &Path) -> Option<u64> {
    let group = GROUPS.iter().find_map(|files| files.free(root));
    let meminfo = fs::read_to_string(root.join("proc/meminfo")).ok();
    let machine = meminfo.and_then(|text| available(&text));
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

    /// What is free where these files are all there is.
    fn free_with(files: &[(&str, &str)]) -> Option<u64> {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        free_under(root.path())
    }

    #[test]
    fn pages_of_files_are_free_in_control_groups_of_both_versions() {
        let stat = "anon 100\nfile 820\ninactive_file 500\nactive_file 300\nshmem 20\n";
        let current = [
            ("sys/fs/cgroup/memory.max", "1000\n"),
            ("sys/fs/cgroup/memory.current", "950\n"),
            ("sys/fs/cgroup/memory.stat", stat),
        ];
        assert_eq!(free_with(&current), Some(850));
        assert_eq!(
            free_with(&current[..2]),
            Some(50),
            "nothing is known of pages"
        );
        let stat =
            "inactive_file 1\nactive_file 2\ntotal_inactive_file 400\ntotal_active_file 300\n";
        let first = [
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "1000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "950\n"),
            ("sys/fs/cgroup/memory/memory.stat", stat),
        ];
        assert_eq!(free_with(&first), Some(750));
    }

    #[test]
    fn the_tighter_of_machine_and_control_group_counts() {
        let machine = ("proc/meminfo", "MemAvailable:   2 kB\n");
        let held = ("sys/fs/cgroup/memory.current", "1000\n");
        let group = |limit| [machine, held, ("sys/fs/cgroup/memory.max", limit)];
        assert_eq!(free_with(&group("1500\n")), Some(500));
        assert_eq!(free_with(&group("9000\n")), Some(2048));
        assert_eq!(free_with(&group("max\n")), Some(2048), "there is no limit");
        assert_eq!(free_with(&[]), None);
    }

    #[test]
    fn the_kernels_figure_is_in_kibibytes() {
        let text = "MemTotal:       100 kB\nMemAvailable:   24 kB\n";
        assert_eq!(available(text), Some(24 * 1024));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
    }
}
