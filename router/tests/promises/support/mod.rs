//! The vocabulary of these tests.

pub(crate) mod client;
pub(crate) mod process;
pub(crate) mod router;
pub(crate) mod worker;

use std::time::Duration;

pub(crate) use client::Reply;
pub(crate) use router::router;
pub(crate) use worker::FakeWorker;

/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Waits until `condition` holds.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = shell::clock::now() + PATIENCE;
    while !condition().await {
        assert!(
            shell::clock::now() < deadline,
            "waited in vain until {what}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Bounds a step of a test.
pub(crate) async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("waited in vain for {what}"))
}
