//! How long a request's body may take. One that stops is given up, and so is one that
//! drips: a byte now and then would hold its connection, and what is buffered so far,
//! as long as the whole request may take.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::time::Sleep;

/// What is asked of a body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// How long each part of it may take.
    pub(crate) stall: Duration,
    /// Bytes in a part are as many as come in this time at this rate, bytes per second.
    pub(crate) rate: u64,
    /// For all of it.
    pub(crate) total: Duration,
    /// From when the total counts.
    pub(crate) since: Instant,
}

/// Why a body was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Late {
    /// Nothing came for too long.
    #[error("no part of the body arrived for {} s", .after.as_secs_f32())]
    Stalled {
        /// The limit.
        after: Duration,
    },
    /// Too little came for too long.
    #[error("the body comes too slowly: {bytes} bytes in {} s, where at least {least} are asked for", .after.as_secs_f32())]
    Dripped {
        /// What came.
        bytes: u64,
        /// What was to come.
        least: u64,
        /// In this time.
        after: Duration,
    },
    /// It was not there whole in time.
    #[error("the body was not there whole after {} s", .after.as_secs_f32())]
    Slow {
        /// The limit.
        after: Duration,
    },
}

/// Waiting for a body.
#[derive(Debug)]
pub(crate) struct Waiting {
    patience: Patience,
    part: Part,
    timer: Option<Pin<Box<Sleep>>>,
}

/// The part that is awaited: when it began, and what came of it.
#[derive(Clone, Copy, Debug)]
struct Part {
    began: Instant,
    bytes: u64,
}

impl Patience {
    /// Begins to wait.
    pub(crate) fn begin(self, now: Instant) -> Waiting {
        Waiting {
            patience: self,
            part: Part {
                began: now,
                bytes: 0,
            },
            timer: None,
        }
    }

    /// The size of a part, bytes. Without a rate, whatever comes is one.
    fn least(&self) -> u64 {
        let millis = u64::try_from(self.stall.as_millis()).unwrap_or(u64::MAX);
        (self.rate.saturating_mul(millis) / 1000).max(1)
    }

    fn due(&self, part: Part) -> Instant {
        (part.began + self.stall).min(self.since + self.total)
    }

    /// What is to be said of a body that has come as far as `part`.
    fn judge(&self, part: Part, now: Instant) -> Result<(), Late> {
        if now >= self.since + self.total {
            return Err(Late::Slow { after: self.total });
        }
        let after = self.stall;
        match part.bytes {
            _ if now < part.began + after => Ok(()),
            0 => Err(Late::Stalled { after }),
            bytes => Err(Late::Dripped {
                bytes,
                least: self.least(),
                after,
            }),
        }
    }
}

impl Waiting {
    /// What `poll` gives, in time.
    pub(crate) async fn next<T>(
        &mut self,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
    ) -> Result<T, Late> {
        let (patience, part) = (self.patience, self.part);
        poll_fn(|cx| {
            if let Poll::Ready(next) = poll(cx) {
                return Poll::Ready(Ok(next));
            }
            // The timer is not moved for each piece; when it fires, it is seen what is due.
            let due = patience.due(part);
            let timer = self
                .timer
                .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due.into())));
            loop {
                ready!(timer.as_mut().poll(cx));
                patience.judge(part, shell::clock::now())?;
                timer.as_mut().reset(due.into());
            }
        })
        .await
    }

    /// Notes that so many bytes came.
    pub(crate) fn came(&mut self, bytes: u64) {
        self.part.bytes += bytes;
        if self.part.bytes >= self.patience.least() {
            self.part = Part {
                began: shell::clock::now(),
                bytes: 0,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// What is said of a body of which `bytes` came in the part that began `ago`.
    fn judged(bytes: u64, ago: Duration, age: Duration) -> Result<(), Late> {
        let now = shell::clock::now() + 1000 * SECOND;
        let patience = Patience {
            stall: 30 * SECOND,
            rate: 1024,
            total: 600 * SECOND,
            since: now - age,
        };
        let part = Part {
            began: now - ago,
            bytes,
        };
        patience.judge(part, now)
    }

    #[test]
    fn a_body_that_stops_or_drips_is_given_up_and_one_that_comes_is_not() {
        let after = 30 * SECOND;
        assert_eq!(judged(0, 29 * SECOND, 29 * SECOND), Ok(()));
        assert_eq!(judged(30_719, 29 * SECOND, 500 * SECOND), Ok(()));
        assert_eq!(judged(0, after, 40 * SECOND), Err(Late::Stalled { after }));
        let dripped = Late::Dripped {
            bytes: 30,
            least: 30_720,
            after,
        };
        assert_eq!(judged(30, after, after), Err(dripped));
        let after = 600 * SECOND;
        assert_eq!(judged(30, SECOND, after), Err(Late::Slow { after }));
    }

    #[test]
    fn a_part_is_whole_once_as_much_came_as_the_rate_asks_for() {
        let began = shell::clock::now();
        let patience = Patience {
            stall: SECOND,
            rate: 10,
            total: 600 * SECOND,
            since: began,
        };
        let mut waiting = patience.begin(began);
        waiting.came(9);
        assert_eq!((waiting.part.began, waiting.part.bytes), (began, 9));
        waiting.came(1);
        assert_eq!(waiting.part.bytes, 0);
        let mut any = Patience {
            rate: 0,
            ..patience
        }
        .begin(began);
        any.came(1);
        assert_eq!(any.part.bytes, 0);
    }
}
