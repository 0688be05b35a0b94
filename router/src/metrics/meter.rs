//! The counts and times of one pool, and of requests that reach no pool.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::metrics::histogram::Histogram;

/// The status of a request whose caller left before its answer.
pub(crate) const CALLER_LEFT: u16 = 499;
/// Statuses with a count of their own; all others share the last place.
pub(crate) const CODES: [u16; 15] = [
    200,
    400,
    401,
    404,
    405,
    408,
    410,
    413,
    429,
    CALLER_LEFT,
    500,
    502,
    503,
    504,
    0,
];

/// Counts and times.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    codes: [Count; CODES.len()],
    /// From the request's head to the first byte of the answer.
    pub(crate) first_byte: Histogram,
    /// From the request's head to the end of the answer.
    pub(crate) duration: Histogram,
    /// Between two pieces of a stream.
    pub(crate) gap: Histogram,
    /// In the waiting room.
    pub(crate) queue_wait: Histogram,
    /// Retries by cause and by what came of them.
    pub(crate) retries: PerPair<RetryReason, 4, RetryOutcome, 5>,
    /// Retries that had to wait for the budget.
    pub(crate) retry_budget_waits: Count,
    /// Ejections of workers.
    pub(crate) ejections: Count,
    /// Refused requests by cause.
    pub(crate) sheds: PerReason<ShedReason, 5>,
    /// Callers that left, by phase.
    pub(crate) caller_aborts: PerReason<Phase, 3>,
    /// Workers that broke off a stream.
    pub(crate) upstream_aborts: Count,
    /// Bytes of request bodies taken in.
    pub(crate) body_bytes: Count,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

/// One [`Count`] per value of a small enum.
#[derive(Debug)]
pub(crate) struct PerReason<R, const N: usize> {
    counts: [Count; N],
    of: std::marker::PhantomData<R>,
}

/// One [`Count`] per pair of values of two small enums.
#[derive(Debug)]
pub(crate) struct PerPair<A, const N: usize, B, const M: usize> {
    rows: [PerReason<B, M>; N],
    of: std::marker::PhantomData<A>,
}

/// A small enum that labels a count.
pub(crate) trait Reason: Copy + 'static {
    /// All values, in the order of their places.
    const ALL: &'static [(Self, &'static str)];
    /// Its place.
    fn place(self) -> usize;
}

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident => $label:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name { $($(#[$vdoc])* $variant,)* }

        impl Reason for $name {
            const ALL: &'static [(Self, &'static str)] = &[$((Self::$variant, $label),)*];
            fn place(self) -> usize { self as usize }
        }
    };
}

reasons! {
    /// Why a request went to another worker.
    RetryReason {
        /// No connection.
        Connect => "connect",
        /// The connection broke before the first byte.
        Broken => "broken",
        /// The worker hung.
        Hung => "hung",
        /// The worker answered that it is busy, or a gateway that it is away.
        Busy => "busy",
    }
}

reasons! {
    /// What came of a retry.
    RetryOutcome {
        /// The other worker answered.
        Answered => "answered",
        /// It failed too.
        Failed => "failed",
        /// There was no other worker to ask.
        NoWorker => "no_worker",
        /// The budget had no room until the request's time was up.
        TooLate => "too_late",
        /// The caller left.
        Abandoned => "abandoned",
    }
}

reasons! {
    /// What a pick went by.
    PickReason {
        /// The shortest estimated queue, by reports of all.
        Reported => "reported",
        /// What this router has with each worker, as reports are missing or old.
        Own => "own",
        /// A draw.
        Lottery => "lottery",
        /// A worker that rested gets one request to show that it is well.
        Trial => "trial",
        /// Nothing better was left than a worker that is suspect, ejected or down.
        LastResort => "last_resort",
    }
}

reasons! {
    /// Why a request was refused.
    ShedReason {
        /// The waiting room is full.
        QueueFull => "queue_full",
        /// No slot became free in time.
        QueueTimeout => "queue_timeout",
        /// Too many wait for a first worker.
        HoldFull => "hold_full",
        /// The bodies of those that wait are as large as they may be.
        BytesFull => "waiting_bytes_full",
        /// No worker came in time.
        NoWorker => "no_worker",
    }
}

reasons! {
    /// Where a request was when its caller left.
    Phase {
        /// It waited for a slot.
        Queued => "queued",
        /// It waited for the first byte.
        FirstByte => "first_byte",
        /// Its answer was on the way.
        Stream => "stream",
    }
}

impl ShedReason {
    /// The code that programs read in the refusal.
    pub(crate) fn code(self) -> &'static str {
        Self::ALL[self.place()].1
    }
}

impl Count {
    /// Adds one.
    pub(crate) fn up(&self) {
        self.add(1);
    }

    /// Adds some.
    pub(crate) fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    /// The number so far.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl<R, const N: usize> Default for PerReason<R, N> {
    fn default() -> Self {
        Self {
            counts: std::array::from_fn(|_| Count::default()),
            of: std::marker::PhantomData,
        }
    }
}

impl<R: Reason, const N: usize> PerReason<R, N> {
    /// Adds one for this reason.
    pub(crate) fn up(&self, reason: R) {
        self.counts[reason.place()].up();
    }

    /// The label and the number of each reason.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.counts.iter().map(Count::get);
        R::ALL.iter().map(|(_, label)| *label).zip(counts)
    }
}

impl<A, const N: usize, B, const M: usize> Default for PerPair<A, N, B, M> {
    fn default() -> Self {
        Self {
            rows: std::array::from_fn(|_| PerReason::default()),
            of: std::marker::PhantomData,
        }
    }
}

impl<A: Reason, const N: usize, B: Reason, const M: usize> PerPair<A, N, B, M> {
    /// Adds one for this pair.
    pub(crate) fn up(&self, a: A, b: B) {
        self.rows[a.place()].up(b);
    }

    /// The labels and the number of each pair.
    pub(crate) fn all(&self) -> impl Iterator<Item = ([&'static str; 2], u64)> {
        let rows = A::ALL.iter().zip(&self.rows);
        rows.flat_map(|((_, a), row)| row.all().map(move |(b, count)| ([*a, b], count)))
    }
}

impl Meter {
    /// A request was answered with this status.
    pub(crate) fn answered(&self, status: u16) {
        let place = CODES.iter().position(|&code| code == status);
        self.codes[place.unwrap_or(CODES.len() - 1)].up();
    }

    /// The number of answers per status that occurred; 0 stands for all others.
    pub(crate) fn codes(&self) -> impl Iterator<Item = (u16, u64)> {
        let counts = self.codes.iter().map(Count::get);
        CODES
            .into_iter()
            .zip(counts)
            .filter(|(_, count)| *count > 0)
    }
}
