//! When to look for the next piece of an answer. At once, as a rule. A worker that sends
//! many small pieces a millisecond, though, makes a read, a write and a wake-up of the
//! caller out of each, and these cost more than what they carry: after a while such an
//! answer is looked at once a millisecond, and goes on in one piece with what came
//! meanwhile, which waits where back-pressure counts it, at the socket.

use std::time::{Duration, Instant};

/// Between two looks at an answer that brings small pieces without end.
const BEAT: Duration = Duration::from_millis(1);
/// Pieces, above one each beat, that pass before that.
const BURST: u32 = 16;
/// A piece this large has collected enough, bytes.
const LARGE: usize = 4096;

/// How often an answer brought small pieces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Beat {
    /// When all that came would have come, had it been one piece each beat.
    paid: Instant,
}

impl Beat {
    /// At the start of an answer.
    pub(crate) fn new(now: Instant) -> Self {
        Self { paid: now }
    }

    /// Notes a piece of so many bytes; when to look for the next one, if not at once.
    pub(crate) fn next_look(&mut self, bytes: usize, now: Instant) -> Option<Instant> {
        if bytes >= LARGE {
            return None;
        }
        self.paid = self.paid.max(now) + BEAT;
        (self.paid > now + BURST * BEAT).then(|| now + BEAT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: usize = 200;

    /// How many of the pieces that come `every` so often are followed by a rest.
    fn rests(every: Duration, pieces: u32, bytes: usize) -> u32 {
        let mut now = shell::clock::now();
        let mut beat = Beat::new(now);
        let mut rests = 0;
        for _ in 0..pieces {
            let rest = beat.next_look(bytes, now);
            rests += u32::from(rest.is_some());
            now = rest.unwrap_or(now).max(now + every);
        }
        rests
    }

    #[test]
    fn what_people_read_is_looked_for_at_once() {
        assert_eq!(rests(Duration::from_millis(10), 10_000, EVENT), 0);
        assert_eq!(rests(BEAT, 10_000, EVENT), 0);
        assert_eq!(rests(Duration::ZERO, BURST, EVENT), 0);
    }

    #[test]
    fn a_flood_of_small_pieces_is_looked_at_once_a_beat() {
        assert_eq!(rests(Duration::from_micros(5), 1016, EVENT), 1000);
    }

    #[test]
    fn large_pieces_are_never_waited_for() {
        assert_eq!(rests(Duration::ZERO, 10_000, LARGE), 0);
    }

    #[test]
    fn after_a_pause_a_burst_passes_again() {
        let now = shell::clock::now();
        let mut beat = Beat::new(now);
        while beat.next_look(EVENT, now).is_none() {}
        let later = now + (BURST + 1) * BEAT;
        assert!((0..BURST).all(|_| beat.next_look(EVENT, later).is_none()));
        assert!(beat.next_look(EVENT, later).is_some());
    }
}
