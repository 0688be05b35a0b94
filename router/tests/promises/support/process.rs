//! A router as a process of its own, to be signalled and killed.

use std::net::SocketAddr;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::router::Builder;
use super::soon;

const BINARY: &str = env!("CARGO_BIN_EXE_llava-router");

/// A router's process. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) address: SocketAddr,
    pub(crate) admin_address: SocketAddr,
    child: Child,
}

impl Process {
    /// A router over workers of model `m`.
    pub(crate) async fn start(router: Builder) -> Self {
        Self::start_asking(router.with("--model=m")).await
    }

    /// A router over workers of model `m` that may open so many files.
    pub(crate) async fn start_with_files(router: Builder, limit: usize) -> Self {
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("ulimit -n {limit}; exec \"$0\" \"$@\"")])
            .arg(BINARY);
        Self::spawn(command, router.with("--model=m")).await
    }

    /// A router that asks its workers for their models.
    pub(crate) async fn start_asking(router: Builder) -> Self {
        Self::spawn(Command::new(BINARY), router).await
    }

    async fn spawn(mut command: Command, router: Builder) -> Self {
        let mut child = command
            .args(router.flags())
            .arg("--log-format=json")
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (address, admin_address) = soon("the router's address", async {
            loop {
                let line = lines
                    .next_line()
                    .await
                    .unwrap()
                    .expect("the router went down");
                let line: serde_json::Value =
                    serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
                if line["message"] == "serving" {
                    let parse = |key: &str| line[key].as_str().unwrap().parse().unwrap();
                    return (parse("address"), parse("admin_address"));
                }
            }
        })
        .await;
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Self {
            address,
            admin_address,
            child,
        }
    }

    /// Asks it to go down.
    pub(crate) async fn terminate(&self) {
        let pid = self.child.id().unwrap().to_string();
        let status = Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .await
            .unwrap();
        assert!(status.success());
    }

    /// Kills it.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Its resident memory, bytes.
    pub(crate) fn memory(&self) -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.child.id().unwrap())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib * 1024
    }

    /// Open files with a number below this; it may have inherited others.
    pub(crate) fn files_below(&self, limit: usize) -> usize {
        let path = format!("/proc/{}/fd", self.child.id().unwrap());
        let names = std::fs::read_dir(path).unwrap();
        let numbers = names.map(|name| name.unwrap().file_name().into_string().unwrap());
        numbers
            .filter(|number| number.parse::<usize>().unwrap() < limit)
            .count()
    }

    /// Waits for its end and says whether it ended well.
    pub(crate) async fn ended_well(mut self) -> bool {
        soon("the router's end", self.child.wait())
            .await
            .unwrap()
            .success()
    }
}
