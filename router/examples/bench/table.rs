//! The table: its columns, the rounds that were measured, and medians of them.
//! Rounds are kept in a file, so that a long run can be taken in several parts.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

use crate::load::{Scenario, Seen};
use crate::targets::{DIRECT, FLOOR};

/// A column of the table: its heading, and how it is read.
pub(crate) struct Column {
    pub(crate) heading: &'static str,
    pub(crate) scenario: Scenario,
    pub(crate) figure: fn(&Figures) -> f64,
    pub(crate) digits: usize,
    /// Whether it is a time that the workers alone take too.
    pub(crate) is_time: bool,
}

/// What one measurement gave.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    pub(crate) seen: Seen,
    pub(crate) cpu_nanos: f64,
    pub(crate) grown: f64,
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
pub(crate) const COLUMNS: [Column; 13] = [
    Column {
        heading: "tiny req/s",
        scenario: Scenario::Tiny,
        figure: |f| f.seen.count as f64 / f.seen.seconds,
        digits: 0,
        is_time: false,
    },
    Column {
        heading: "tiny CPU µs/req",
        scenario: Scenario::Tiny,
        figure: |f| f.cpu_nanos / 1e3 / f.seen.count as f64,
        digits: 1,
        is_time: false,
    },
    Column {
        heading: "c=1 p50 ms",
        scenario: Scenario::TinyOne,
        figure: |f| f.seen.p50,
        digits: 3,
        is_time: true,
    },
    Column {
        heading: "TTFB p50 ms",
        scenario: Scenario::Moderate,
        figure: |f| f.seen.p50,
        digits: 3,
        is_time: true,
    },
    Column {
        heading: "TTFB p99 ms",
        scenario: Scenario::Moderate,
        figure: |f| f.seen.p99,
        digits: 3,
        is_time: true,
    },
    Column {
        heading: "event p50 ms",
        scenario: Scenario::Events,
        figure: |f| f.seen.p50,
        digits: 3,
        is_time: true,
    },
    Column {
        heading: "event p99 ms",
        scenario: Scenario::Events,
        figure: |f| f.seen.p99,
        digits: 3,
        is_time: true,
    },
    Column {
        heading: "CPU µs/event",
        scenario: Scenario::Events,
        figure: |f| f.cpu_nanos / 1e3 / f.seen.count as f64,
        digits: 1,
        is_time: false,
    },
    Column {
        heading: "flat events/s",
        scenario: Scenario::Flat,
        figure: |f| f.seen.count as f64 / f.seen.seconds,
        digits: 0,
        is_time: false,
    },
    Column {
        heading: "1 MiB req/s",
        scenario: Scenario::Mib,
        figure: |f| f.seen.count as f64 / f.seen.seconds,
        digits: 0,
        is_time: false,
    },
    Column {
        heading: "1 MiB CPU ms",
        scenario: Scenario::Mib,
        figure: |f| f.cpu_nanos / 1e6 / f.seen.count as f64,
        digits: 3,
        is_time: false,
    },
    Column {
        heading: "1 MiB c=1 p50 ms",
        scenario: Scenario::MibOne,
        figure: |f| f.seen.p50,
        digits: 3,
        is_time: true,
    },
    Column {
        heading: "KiB/idle stream",
        scenario: Scenario::Idle,
        figure: |f| f.grown / 1024.0 / f.seen.count as f64,
        digits: 1,
        is_time: false,
    },
];

/// The figures of each round, by target.
#[derive(Default)]
pub(crate) struct Table(BTreeMap<String, Vec<Vec<f64>>>);

impl Table {
    /// What `file` keeps of earlier runs; nothing when it is not there.
    pub(crate) fn read(file: Option<&Path>) -> Self {
        let text = file.and_then(|file| std::fs::read_to_string(file).ok());
        let mut table = Self::default();
        for line in text.iter().flat_map(|text| text.lines()) {
            let (target, row) = serde_json::from_str(line).unwrap();
            table.add(target, row);
        }
        table
    }

    fn add(&mut self, target: String, row: Vec<f64>) {
        self.0.entry(target).or_default().push(row);
    }

    /// Adds a row, to `file` too.
    pub(crate) fn take(&mut self, target: &str, row: Vec<f64>, file: Option<&Path>) {
        if let Some(file) = file {
            let open = std::fs::File::options()
                .create(true)
                .append(true)
                .open(file);
            let line = serde_json::to_string(&(target, &row)).unwrap();
            writeln!(open.unwrap(), "{line}").unwrap();
        }
        self.add(target.to_owned(), row);
    }

    /// The median over the rounds of how each figure of `target` compares with that
    /// of `base` in the same round.
    fn compared(&self, target: &str, base: &str, how: fn(f64, f64) -> f64) -> Vec<f64> {
        let rounds = || self.0[target].iter().zip(&self.0[base]);
        let one = |column: usize| {
            let values = rounds().map(|(ours, theirs)| how(ours[column], theirs[column]));
            median(values.collect())
        };
        (0..COLUMNS.len()).map(one).collect()
    }

    /// Prints medians; what each adds to the times of the workers alone; and ratios to
    /// [`FLOOR`].
    pub(crate) fn print(&self, targets: &[&str]) {
        let headings: Vec<&str> = COLUMNS.iter().map(|column| column.heading).collect();
        println!("| target | {} |", headings.join(" | "));
        println!("|---|{}", "---|".repeat(COLUMNS.len()));
        for target in targets {
            let medians = self.compared(target, target, |ours, _| ours);
            print_row(target, &medians, |value, c| format!("{value:.*}", c.digits));
        }
        for target in targets.iter().filter(|target| **target != DIRECT) {
            let added = self.compared(target, DIRECT, |ours, theirs| ours - theirs);
            print_row(
                &format!("{target} − {DIRECT}"),
                &added,
                |value, c| match c.is_time {
                    true => format!("{value:+.*}", c.digits),
                    false => String::new(),
                },
            );
        }
        for target in targets.iter().filter(|t| ![DIRECT, FLOOR].contains(t)) {
            let ratios = self.compared(target, FLOOR, |ours, theirs| ours / theirs);
            print_row(&format!("{target} / {FLOOR}"), &ratios, |value, _| {
                format!("{value:.2}")
            });
        }
    }
}

fn print_row(name: &str, values: &[f64], cell: impl Fn(f64, &Column) -> String) {
    let cells: Vec<String> = values
        .iter()
        .zip(&COLUMNS)
        .map(|(value, column)| cell(*value, column))
        .collect();
    println!("| {name} | {} |", cells.join(" | "));
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
