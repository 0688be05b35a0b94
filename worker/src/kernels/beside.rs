//! Threads beside the one that calls, for work so short that waking a thread and
//! sleeping until it is done would take as long as the work itself.

use std::any::Any;
use std::hint::spin_loop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;
use std::{io, mem};

use shell::clock;

/// How long a thread that has nothing to do stays awake. On a virtual machine it takes 30 to
/// 60 µs until a sleeping one runs, and a call of the system to wake it; what lies between two
/// steps of a small model takes less than this.
const AWAKE: Duration = Duration::from_micros(200);

/// Looks at what is waited for between two looks at the clock.
const LOOKS: usize = 16;

/// Threads that help the calling one.
#[derive(Debug)]
pub(crate) struct Beside {
    /// One caller at a time.
    helpers: Mutex<Vec<Helper>>,
}

#[derive(Debug)]
struct Helper {
    desk: Arc<Desk>,
    thread: Option<JoinHandle<()>>,
}

/// Where a helper gets its work, one piece at a time.
#[derive(Default)]
struct Desk {
    state: AtomicU8,
    piece: Mutex<Option<Piece>>,
}

/// A piece of work and who waits for it.
struct Piece {
    work: &'static mut (dyn FnMut() + Send),
    caller: Thread,
}

/// Nothing to do.
const FREE: u8 = 0;
/// A piece lies there or is being worked on.
const BUSY: u8 = 1;
/// The same, and the caller sleeps until it is done.
const AWAITED: u8 = 2;
/// No more will come.
const CLOSED: u8 = 3;

impl Beside {
    /// One less than `threads`, as the calling thread works too.
    pub(crate) fn new(threads: usize) -> io::Result<Self> {
        let helpers = (1..threads).map(Helper::start).collect::<io::Result<_>>()?;
        Ok(Self {
            helpers: Mutex::new(helpers),
        })
    }

    /// Does `one` for each piece of `work`, the first on this thread, and those for which there is
    /// no helper; the results in order. A panic in any of them goes on in this thread when all are done.
    pub(crate) fn each<T: Send, R: Send>(
        &self,
        work: impl IntoIterator<Item = T>,
        one: impl Fn(T) -> R + Sync,
    ) -> Vec<R> {
        let mut work = work.into_iter();
        let Some(first) = work.next() else {
            return Vec::new();
        };
        let one = |work| catch_unwind(AssertUnwindSafe(|| one(work)));
        let mut others: Vec<(Option<T>, Option<thread::Result<R>>)> =
            work.map(|work| (Some(work), None)).collect();
        let mut pieces: Vec<_> = others
            .iter_mut()
            .map(|(work, result)| || *result = work.take().map(one))
            .collect();
        let first = {
            // Another caller's helpers are not waited for.
            let helpers = self.helpers.try_lock();
            let helpers = helpers.as_deref().map_or(&[][..], Vec::as_slice);
            let count = helpers.len().min(pieces.len());
            let (helped, own) = pieces.split_at_mut(count);
            let _handed = Handed::out(helpers, helped);
            let first = one(first);
            own.iter_mut().for_each(|piece| piece());
            first
        };
        drop(pieces);
        let others = others.into_iter().filter_map(|(_, result)| result);
        let all: Result<Vec<R>, Box<dyn Any + Send>> =
            std::iter::once(first).chain(others).collect();
        all.unwrap_or_else(|panic| resume_unwind(panic))
    }
}

/// Helpers with work, which borrows what outlives this.
struct Handed<'a>(&'a [Helper]);

impl<'a> Handed<'a> {
    /// Gives each of the `pieces` to a helper, of which there are as many at least.
    fn out<F: FnMut() + Send>(helpers: &'a [Helper], pieces: &'a mut [F]) -> Self {
        // Made before the first is given out: whatever happens, they are waited for.
        let handed = Self(&helpers[..pieces.len()]);
        for (helper, piece) in handed.0.iter().zip(pieces) {
            helper.give(piece);
        }
        handed
    }
}

impl Drop for Handed<'_> {
    fn drop(&mut self) {
        for helper in self.0 {
            helper.desk.wait();
        }
    }
}

impl Helper {
    fn start(number: usize) -> io::Result<Self> {
        let desk = Arc::new(Desk::default());
        let thread = thread::Builder::new().name(format!("beside-{number}"));
        Ok(Self {
            desk: Arc::clone(&desk),
            thread: Some(thread.spawn(move || desk.work())?),
        })
    }

    /// Has the helper do `work`, which [`Desk::wait`] must follow before `work` ends.
    fn give(&self, work: &mut (dyn FnMut() + Send)) {
        // SAFETY: only the lifetime changes. `Handed` waits until the helper is done before the
        // borrow ends, and the helper has let go of it then.
        let work = unsafe {
            mem::transmute::<&mut (dyn FnMut() + Send), &'static mut (dyn FnMut() + Send)>(work)
        };
        let caller = thread::current();
        *self.desk.piece() = Some(Piece { work, caller });
        self.desk.state.store(BUSY, Ordering::Release);
        // No call of the system where it is awake.
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.desk.state.store(CLOSED, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It runs nothing that could panic.
            let _ = thread.join();
        }
    }
}

impl Desk {
    fn piece(&self) -> MutexGuard<'_, Option<Piece>> {
        self.piece.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The helper's life.
    fn work(&self) {
        loop {
            let state = || self.state.load(Ordering::Acquire);
            while !spin_until(|| state() != FREE) && state() == FREE {
                thread::park();
            }
            if state() == CLOSED {
                return;
            }
            let piece = self.piece().take();
            if let Some(Piece { work, caller }) = piece {
                work();
                if self.state.swap(FREE, Ordering::AcqRel) == AWAITED {
                    caller.unpark();
                }
            }
        }
    }

    /// Returns when the helper has nothing to do.
    fn wait(&self) {
        let state = || self.state.load(Ordering::Acquire);
        if spin_until(|| state() == FREE) {
            return;
        }
        let awaited =
            self.state
                .compare_exchange(BUSY, AWAITED, Ordering::AcqRel, Ordering::Acquire);
        if awaited.is_ok() {
            while state() == AWAITED {
                thread::park();
            }
        }
    }
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Desk").field(&self.state).finish()
    }
}

/// Waits without sleeping, [`AWAKE`] at most; whether it is `so`.
fn spin_until(so: impl Fn() -> bool) -> bool {
    let end = clock::now() + AWAKE;
    loop {
        for _ in 0..LOOKS {
            if so() {
                return true;
            }
            spin_loop();
        }
        if clock::now() >= end {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn results_come_in_order_however_often_it_is_called() {
        let beside = Beside::new(3).unwrap();
        for count in (0..5).cycle().take(400) {
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
    fn a_caller_that_sleeps_and_a_helper_that_sleeps_are_woken() {
        let beside = Beside::new(2).unwrap();
        for (here, there) in [(0, 20), (20, 0)] {
            let each = [here, there].map(Duration::from_millis);
            let found = beside.each(each, |time| {
                let end = clock::now() + time;
                while clock::now() < end {
                    thread::yield_now();
                }
                1
            });
            assert_eq!(found, [1, 1]);
        }
    }

    #[test]
    fn two_callers_at_once_are_both_served() {
        let beside = Beside::new(2).unwrap();
        let meeting = Barrier::new(2);
        thread::scope(|scope| {
            for caller in 0..2 {
                let (beside, meeting) = (&beside, &meeting);
                scope.spawn(move || {
                    meeting.wait();
                    for n in 0..200 {
                        assert_eq!(
                            beside.each(0..2, |at| caller + n + at),
                            [caller + n, caller + n + 1]
                        );
                    }
                });
            }
        });
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
