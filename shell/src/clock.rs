//! The one place that asks for the time. Everything else takes `now` as an
//! argument, so that tests can set it.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Monotonic time, for ages and deadlines.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the clock itself")]
pub fn now() -> Instant {
    Instant::now()
}

/// Milliseconds since the Unix epoch, for what leaves the process.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "the clock itself")]
pub fn unix_millis() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
