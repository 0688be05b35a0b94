//! The two clocks: one for ages, one for what is written down.

use std::time::Instant;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

/// An instant on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    /// Monotonic, for ages and deadlines within this process.
    pub monotonic: Instant,
    /// Wall clock, for statuses.
    pub wall: Timestamp,
}

impl Now {
    /// Asks the clocks.
    #[must_use]
    pub fn read() -> Self {
        let millis = i64::try_from(shell::clock::unix_millis()).unwrap_or(i64::MAX);
        Self {
            monotonic: shell::clock::now(),
            wall: Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH),
        }
    }

    /// As an object's field; Kubernetes keeps whole seconds.
    #[must_use]
    pub fn time(&self) -> Time {
        Time(Timestamp::from_second(self.wall.as_second()).unwrap_or(self.wall))
    }
}
