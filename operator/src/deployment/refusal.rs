//! A quota or a webhook that refused a worker is asked again at doubling intervals,
//! whatever happens meanwhile: every event of the other workers would cost it a call.

use std::time::{Duration, Instant};

use crate::backoff::RETRY;

/// What was said of workers that were not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// One word.
    pub reason: &'static str,
    /// The words of whoever refused.
    pub message: String,
}

#[derive(Clone, Debug)]
struct Standing {
    refused: Refused,
    generation: Option<i64>,
    until: Instant,
}

/// The refusals in a row.
#[derive(Debug, Default)]
pub struct Refusals {
    count: u32,
    last: Option<Standing>,
}

impl Refusals {
    /// The refusal that holds still, and for how long. A changed spec may be another matter.
    #[must_use]
    pub fn standing(&self, generation: Option<i64>, now: Instant) -> Option<(Refused, Duration)> {
        let last = self.last.as_ref()?;
        let rest = last.until.saturating_duration_since(now);
        let holds = last.generation == generation && !rest.is_zero();
        holds.then(|| (last.refused.clone(), rest))
    }

    /// One more.
    pub fn note(&mut self, refused: Refused, generation: Option<i64>, now: Instant) {
        self.count = self.count.saturating_add(1);
        self.last = Some(Standing {
            refused,
            generation,
            until: now + RETRY.delay(self.count),
        });
    }

    /// Workers were made, or none is wanted.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_holds_longer_each_time_and_for_its_spec_alone() {
        let refused = Refused {
            reason: "CreateRefused",
            message: "exceeded quota".to_owned(),
        };
        let mut refusals = Refusals::default();
        let now = shell::clock::now();
        assert_eq!(refusals.standing(Some(1), now), None);
        let mut holds = Vec::new();
        for _ in 0..4 {
            refusals.note(refused.clone(), Some(1), now);
            let (said, rest) = refusals.standing(Some(1), now).unwrap();
            assert_eq!(said, refused);
            holds.push(rest.as_millis());
        }
        assert_eq!(holds, [500, 1000, 2000, 4000]);
        let late = now + Duration::from_secs(4);
        assert_eq!(refusals.standing(Some(1), late), None);
        assert_eq!(refusals.standing(Some(2), now), None);
        refusals.clear();
        refusals.note(refused.clone(), Some(1), now);
        let rest = Duration::from_millis(500);
        assert_eq!(refusals.standing(Some(1), now), Some((refused, rest)));
    }
}
