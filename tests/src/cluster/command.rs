//! Commands of the system, run to their end with their output in the error.

use std::{io, process::Stdio, time::Duration};

use tokio::{io::AsyncWriteExt, process::Command};

use super::error::Error;

/// Runs a command to its end and returns what it printed on standard output.
///
/// # Errors
/// When it cannot start or ends with another status than 0.
pub async fn run(command: &mut Command) -> Result<String, Error> {
    feed(command, "").await
}

/// Runs a command to its end with `input` on its standard input.
///
/// # Errors
/// When it cannot start or ends with another status than 0.
pub(super) async fn feed(command: &mut Command, input: &str) -> Result<String, Error> {
    let line = display(command);
    let start = |source: io::Error| Error::Start {
        command: line.clone(),
        source,
    };
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = command.spawn().map_err(start)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A command that ends without reading tells why by its status.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(start)?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let mut printed = output.stdout;
    printed.extend(output.stderr);
    Err(Error::Command {
        command: line,
        status: output.status,
        output: tail(&String::from_utf8_lossy(&printed), 30),
    })
}

/// The last `lines` lines of a text.
pub(super) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.trim_end().lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The deadline of each step of a cluster's start and end. It is generous: it
/// tells a broken cluster from a busy machine.
pub(super) const STEP: Duration = Duration::from_secs(120);

/// How long one question of [`wait_for`] may take.
const PROBE: Duration = Duration::from_secs(20);
/// How long to wait between two of them, at first,
const SHORTEST: Duration = Duration::from_millis(20);
/// and at last: who waits for long must not keep the machine busy with asking.
const LONGEST: Duration = Duration::from_millis(100);

/// Asks again and again until `probe` gives a value.
///
/// # Errors
/// [`Error::Late`] when it gave none `within` the time.
pub async fn wait_for<T>(
    what: &str,
    within: Duration,
    mut probe: impl AsyncFnMut() -> Option<T>,
) -> Result<T, Error> {
    let asking = async {
        let mut pause = SHORTEST;
        loop {
            // A probe whose answer was lost must not use up the others' time.
            if let Ok(Some(value)) = tokio::time::timeout(PROBE, probe()).await {
                return value;
            }
            tokio::time::sleep(pause).await;
            pause = LONGEST.min(pause * 3 / 2);
        }
    };
    tokio::time::timeout(within, asking)
        .await
        .map_err(|_| Error::Late {
            what: what.to_owned(),
            within,
        })
}

pub(super) fn display(command: &Command) -> String {
    let command = command.as_std();
    let mut words = vec![command.get_program().to_string_lossy()];
    words.extend(command.get_args().map(|word| word.to_string_lossy()));
    words.join(" ")
}
