//! Threads beside the one that calls, for work so short that waking a thread and
//! sleeping until it is done would take as long as the work itself.

use std::hint::spin_loop;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};
use shell::clock;

/// How long a thread that has nothing to do stays awake. On a virtual machine it takes 30 to
/// 60 µs until a sleeping one runs; from one step of a model to the next it is less.
const AWAKE: Duration = Duration::from_micros(50);

/// Looks at what is waited for between two looks at the clock.
const LOOKS: usize = 16;

/// Threads that help the calling one.
#[derive(Debug)]
pub(super) struct Beside {
    pool: ThreadPool,
    /// How often they were called.
    calls: Arc<AtomicUsize>,
}

impl Beside {
    /// One less than `threads`, as the calling thread works too.
    pub(super) fn new(threads: usize) -> Result<Self, ThreadPoolBuildError> {
        let pool = ThreadPoolBuilder::new()
            // Zero would be as many as there are processors.
            .num_threads(threads.saturating_sub(1).max(1))
            .thread_name(|index| format!("beside-{index}"))
            .build()?;
        Ok(Self {
            pool,
            calls: Arc::default(),
        })
    }

    /// Does `one` for each piece of `work`, the first on this thread; the results in order.
    pub(super) fn each<T: Send, R: Send>(
        &self,
        work: impl IntoIterator<Item = T>,
        one: impl Fn(T) -> R + Sync,
    ) -> Vec<R> {
        let mut work = work.into_iter();
        let Some(first) = work.next() else {
            return Vec::new();
        };
        let mut others: Vec<_> = work.map(|work| (Some(work), None)).collect();
        if others.is_empty() {
            return vec![one(first)];
        }
        let count = others.len();
        let done = AtomicUsize::new(0);
        let first = self.pool.in_place_scope(|scope| {
            let (one, done) = (&one, &done);
            for (work, result) in &mut others {
                scope.spawn(move |_| {
                    *result = work.take().map(one);
                    done.fetch_add(1, Ordering::Release);
                });
            }
            self.calls.fetch_add(1, Ordering::Release);
            let first = one(first);
            spin_until(|| done.load(Ordering::Acquire) == count);
            first
        });
        self.keep_awake(count);
        let others = others.into_iter().filter_map(|(_, result)| result);
        std::iter::once(first).chain(others).collect()
    }

    /// Has so many threads wait for the next call.
    fn keep_awake(&self, count: usize) {
        let call = self.calls.load(Ordering::Acquire);
        for _ in 0..count {
            let calls = Arc::clone(&self.calls);
            self.pool
                .spawn(move || spin_until(|| calls.load(Ordering::Acquire) != call));
        }
    }
}

/// Waits without sleeping, [`AWAKE`] at most.
fn spin_until(so: impl Fn() -> bool) {
    let end = clock::now() + AWAKE;
    loop {
        for _ in 0..LOOKS {
            if so() {
                return;
            }
            spin_loop();
        }
        if clock::now() >= end {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::thread;

    use super::*;

    #[test]
    fn results_come_in_order_however_often_it_is_called() {
        let beside = Beside::new(3).unwrap();
        for count in (0..4).cycle().take(400) {
            let found = beside.each(0..count, |n| 10 * n);
            assert_eq!(found, (0..count).map(|n| 10 * n).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_first_piece_is_done_by_the_caller_and_others_beside_it() {
        let beside = Beside::new(2).unwrap();
        let who = beside.each(0..2, |_| thread::current().id());
        assert_eq!(who[0], thread::current().id());
        assert_ne!(who[1], who[0]);
    }

    #[test]
    fn a_panic_in_any_piece_reaches_the_caller_and_the_next_call_works() {
        let beside = Beside::new(2).unwrap();
        for bad in 0..2 {
            let call = || beside.each(0..2, |n| assert_ne!(n, bad));
            assert!(catch_unwind(AssertUnwindSafe(call)).is_err());
            assert_eq!(beside.each(0..2, |n| n), [0, 1]);
        }
    }
}
