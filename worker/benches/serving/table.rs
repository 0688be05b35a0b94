//! The figures, as a Markdown table.

use std::fmt;

/// What was measured.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

#[derive(Debug)]
struct Row {
    what: String,
    measured: String,
    wanted: Option<String>,
    met: bool,
}

impl Table {
    /// A figure that informs.
    pub(crate) fn note(&mut self, what: &str, measured: String) {
        eprintln!("  {what}: {measured}");
        self.rows.push(Row {
            what: what.to_owned(),
            measured,
            wanted: None,
            met: true,
        });
    }

    /// A figure of which something is wanted.
    pub(crate) fn check(&mut self, what: &str, measured: String, wanted: &str, met: bool) {
        eprintln!("  {what}: {measured} (wanted: {wanted})");
        self.rows.push(Row {
            what: what.to_owned(),
            measured,
            wanted: Some(wanted.to_owned()),
            met,
        });
    }

    /// Figures that are not what is wanted.
    pub(crate) fn misses(&self) -> usize {
        self.rows.iter().filter(|row| !row.met).count()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| what | measured | wanted |")?;
        writeln!(f, "|---|---|---|")?;
        for row in &self.rows {
            let wanted = row.wanted.as_deref().unwrap_or("–");
            let missed = if row.met { "" } else { " **missed**" };
            writeln!(f, "| {} | {} | {wanted}{missed} |", row.what, row.measured)?;
        }
        Ok(())
    }
}
