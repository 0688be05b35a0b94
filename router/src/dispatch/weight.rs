//! The size of a request against the usual one. Only sizes that differ much
//! matter: a model that gets the same kind of request again and again is
//! balanced by plain counts.

use crate::dispatch::estimate::UNIT;

/// The share of the newest request in the usual size.
const GAIN: f64 = 0.02;
/// No request counts as more, or less, than this many usual ones.
const MAX_RATIO: f64 = 4.0;
/// Within this ratio a request is of usual size.
const SAME: f64 = 1.5;

/// The usual size of a pool's requests, in tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct UsualSize {
    tokens: f64,
}

impl UsualSize {
    /// Weighs a request of `tokens`, and learns from it.
    pub(crate) fn weigh(&mut self, tokens: u64) -> u64 {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let tokens = tokens.max(1) as f64;
        if self.tokens == 0.0 {
            self.tokens = tokens;
        }
        let ratio = tokens / self.tokens;
        self.tokens += GAIN * (tokens - self.tokens);
        if (1.0 / SAME..=SAME).contains(&ratio) {
            return UNIT;
        }
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped to 250..=4000"
        )]
        let weight = (ratio.clamp(1.0 / MAX_RATIO, MAX_RATIO) * UNIT as f64) as u64;
        weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_one_size_weigh_one_and_others_by_their_size() {
        let mut usual = UsualSize::default();
        assert_eq!(usual.weigh(800), UNIT);
        assert_eq!(usual.weigh(900), UNIT);
        assert!(usual.weigh(100_000) == 4 * UNIT);
        assert!(usual.weigh(10) == UNIT / 4);
    }
}
