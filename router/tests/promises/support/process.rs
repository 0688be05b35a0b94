//! A router as a process of its own, to be signalled and killed.

use std::net::SocketAddr;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::router::Builder;
use super::soon;

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

    /// A router that asks its workers for their models.
    pub(crate) async fn start_asking(router: Builder) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_llava-router"))
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

    /// Waits for its end and says whether it ended well.
    pub(crate) async fn ended_well(mut self) -> bool {
        soon("the router's end", self.child.wait())
            .await
            .unwrap()
            .success()
    }
}
