//! An end that thousands of connections and streams wait for: of accepting, and of the
//! router. Each registers once; at every later wake-up a look costs one load, where a
//! token would have all of them take turns at its lock.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Comes once. Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct End {
    came: Arc<AtomicBool>,
    token: CancellationToken,
}

/// One task's wait for an [`End`].
#[derive(Debug)]
pub(crate) struct Wait {
    end: End,
    registered: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
}

impl End {
    /// Tells all who wait.
    pub(crate) fn come(&self) {
        self.came.store(true, Ordering::Release);
        self.token.cancel();
    }

    /// Begins to wait.
    pub(crate) fn wait(&self) -> Wait {
        Wait {
            end: self.clone(),
            registered: None,
        }
    }
}

impl Wait {
    /// Whether the end is there. The task that asks first is woken when it comes.
    pub(crate) fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        if self.end.came.load(Ordering::Acquire) {
            return true;
        }
        if self.registered.is_some() {
            return false;
        }
        let mut registered = Box::pin(self.end.token.clone().cancelled_owned());
        let over = registered.as_mut().poll(cx).is_ready();
        self.registered = Some(registered);
        over
    }

    /// Waits for the end.
    pub(crate) async fn over(&mut self) {
        poll_fn(|cx| match self.is_over(cx) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_waits_is_woken_and_whoever_comes_late_need_not_wait() {
        let end = End::default();
        let mut wait = end.wait();
        let early = tokio::spawn(async move { wait.over().await });
        tokio::task::yield_now().await;
        assert!(!early.is_finished());
        end.come();
        early.await.unwrap();
        end.wait().over().await;
    }
}
