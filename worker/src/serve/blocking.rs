//! CPU work of requests, off the async threads.

use super::refusal::Refusal;

/// Runs `work` where it blocks nobody, and gives `held` back with its result. What a request holds
/// counts until its work is done, though its caller may have left: work that waits for a thread
/// cannot be called back. A panic in it is a fault of this request alone.
pub(super) async fn blocking<H: Send + 'static, T: Send + 'static>(
    held: H,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<(H, T), Refusal> {
    let work = move || {
        let done = work();
        (held, done)
    };
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(panicked = error.is_panic(), "preparing a request failed");
        Refusal::internal()
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn what_work_holds_counts_until_it_is_done_though_its_caller_leaves() {
        let held = Arc::new(());
        let (go_on, wait) = std::sync::mpsc::channel::<()>();
        let work = blocking(Arc::clone(&held), move || wait.recv());
        tokio::select! {
            biased;
            _ = work => panic!("the work ended by itself"),
            () = std::future::ready(()) => {}
        }
        assert_eq!(Arc::strong_count(&held), 2, "the caller has left");
        go_on.send(()).unwrap();
        while Arc::strong_count(&held) > 1 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_panic_while_preparing_a_request_is_a_fault_of_that_request() {
        let refusal = blocking((), || panic!("as asked")).await;
        let refusal = refusal.map(|((), ())| ()).unwrap_err();
        assert_eq!(refusal.code(), "internal_error");
    }
}
