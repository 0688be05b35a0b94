//! What a run tells: a line on the terminal, a line of JSON in `journal.jsonl`,
//! and a plot of the loss.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::evaluate::Accuracy;
use super::pass::Spent;
use super::plot;

/// One entry of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// Some steps.
    Step(StepEvent),
    /// Accuracy on the held-out file.
    Accuracy {
        /// The stage, from 0.
        stage: usize,
        /// Steps of it that were done.
        step: usize,
        /// Steps done since the run began.
        total: usize,
        /// What was measured.
        accuracy: Accuracy,
    },
}

/// The last steps of a run, averaged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepEvent {
    /// The stage, from 0.
    pub stage: usize,
    /// Steps of it that are done.
    pub step: usize,
    /// Steps it will have.
    pub steps: usize,
    /// Steps done since the run began.
    pub total: usize,
    /// Mean loss of a learned token.
    pub loss: f64,
    /// Learning rate.
    pub rate: f64,
    /// Norm of the gradients before clipping.
    pub norm: f64,
    /// Positions per second.
    pub tokens_per_second: f64,
    /// Arithmetic per second, in 10⁹ operations.
    pub gflops: f64,
    /// Seconds since the process began.
    pub seconds: f64,
    /// Where the time of these steps went.
    #[serde(default)]
    pub spent: Spent,
}

/// The journal of a run.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
}

/// The journal could not be written.
#[derive(Debug, thiserror::Error)]
#[error("write {path}")]
pub struct JournalError {
    path: PathBuf,
    source: std::io::Error,
}

impl Journal {
    /// Opens the journal in `output`. What a run that was cut off wrote beyond `total` steps is
    /// dropped, so that a resumed run's journal reads like an uninterrupted one's.
    ///
    /// # Errors
    /// Names the file.
    pub fn open(output: &Path, total: usize) -> Result<Self, JournalError> {
        let path = output.join("journal.jsonl");
        let failed = |source| JournalError {
            path: path.clone(),
            source,
        };
        let kept: String = (read(output).iter())
            .filter(|event| event.total() <= total && total > 0)
            .filter_map(|event| serde_json::to_string(event).ok())
            .map(|line| line + "\n")
            .collect();
        std::fs::write(&path, kept).map_err(failed)?;
        let file = OpenOptions::new()
            .append(true)
            .open(&path)
            .map_err(failed)?;
        Ok(Self { path, file })
    }

    /// Appends an event.
    ///
    /// # Errors
    /// Names the file.
    pub fn write(&mut self, event: &Event) -> Result<(), JournalError> {
        let line = serde_json::to_string(event).unwrap_or_default();
        writeln!(self.file, "{line}").map_err(|source| JournalError {
            path: self.path.clone(),
            source,
        })
    }

    /// Draws the loss over all steps so far beside the journal.
    ///
    /// # Errors
    /// Names the file.
    pub fn plot(&self, output: &Path) -> Result<(), JournalError> {
        let path = output.join("loss.svg");
        std::fs::write(&path, plot::loss(&read(output)))
            .map_err(|source| JournalError { path, source })
    }
}

impl Event {
    fn total(&self) -> usize {
        match self {
            Self::Step(event) => event.total,
            Self::Accuracy { total, .. } => *total,
        }
    }
}

impl StepEvent {
    /// The line for the terminal.
    pub fn line(&self, left: Duration) -> String {
        format!(
            "stage {} step {}/{} loss {:.4} rate {:.2e} norm {:.2} {:.0} tokens/s {:.1} GFLOP/s left {}",
            self.stage,
            self.step,
            self.steps,
            self.loss,
            self.rate,
            self.norm,
            self.tokens_per_second,
            self.gflops,
            clock(left)
        )
    }
}

fn clock(left: Duration) -> String {
    let seconds = left.as_secs();
    format!(
        "{}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

/// All entries of a journal; a line cut off by a crash is passed over.
pub fn read(output: &Path) -> Vec<Event> {
    let text = std::fs::read_to_string(output.join("journal.jsonl")).unwrap_or_default();
    text.lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}
