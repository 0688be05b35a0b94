//! How many workers the load asks for. Up at once, but not while a worker is
//! still coming up; down only after every reading of the whole delay was low; to
//! zero when nobody asked for the idle time; from zero with the first request
//! that a router holds.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crds::autoscaling::{Autoscaling, DEFAULT_IDLE_TIMEOUT};

/// How often the load is read when nothing happens.
pub const PERIOD: Duration = Duration::from_secs(5);

/// The load at one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Requests running or waiting at workers, and held in routers.
    pub requests: usize,
    /// Workers wished for until now.
    pub current: usize,
    /// Workers that are not available yet.
    pub pending: usize,
}

/// The readings of one deployment.
#[derive(Debug, Default)]
pub struct Scaler {
    /// What each reading asked for, over the scale-down delay.
    asked: VecDeque<(Instant, usize)>,
    /// Since when nobody asks.
    idle_since: Option<Instant>,
}

impl Scaler {
    /// The number of workers to have now.
    pub fn decide(&mut self, reading: Reading, rules: &Autoscaling, now: Instant) -> usize {
        let least = usize::try_from(rules.min_replicas).unwrap_or_default();
        let most = usize::try_from(rules.max_replicas)
            .unwrap_or_default()
            .max(least);
        let target = usize::try_from(rules.target_queue_length)
            .unwrap_or(1)
            .max(1);
        let asked = reading.requests.div_ceil(target);
        if reading.requests > 0 {
            self.idle_since = None;
        } else {
            self.idle_since.get_or_insert(now);
        }
        let delay = rules.scale_down_delay.get();
        self.asked.push_back((now, asked));
        // One reading older than the delay stays: it proves that the delay is covered.
        while self.asked.len() > 1 && now.saturating_duration_since(self.asked[1].0) >= delay {
            self.asked.pop_front();
        }
        let covered = self
            .asked
            .front()
            .is_some_and(|(first, _)| now.saturating_duration_since(*first) >= delay);
        let highest = self
            .asked
            .iter()
            .map(|(_, asked)| *asked)
            .max()
            .unwrap_or_default();

        let current = reading.current.clamp(least, most);
        let idle = rules.idle_timeout.unwrap_or(DEFAULT_IDLE_TIMEOUT).get();
        let asleep = least == 0
            && self
                .idle_since
                .is_some_and(|since| now.saturating_duration_since(since) >= idle);
        if asked > current {
            // Workers that are coming up will take their part first.
            let blocked = reading.pending > 0 && current > 0;
            if blocked { current } else { asked.min(most) }
        } else if current <= 1 {
            if asleep { 0 } else { current }
        } else if covered && highest < current {
            highest.max(least).max(1)
        } else {
            current
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn rules(least: i32, most: i32) -> Autoscaling {
        let mut rules: Autoscaling = serde_json::from_value(json!({
            "minReplicas": least, "maxReplicas": most, "targetQueueLength": 4, "scaleDownDelay": "30s",
        }))
        .unwrap();
        rules.idle_timeout = (least == 0).then(|| crds::duration::Duration::from_secs(60));
        rules
    }

    fn reading(requests: usize, current: usize, pending: usize) -> Reading {
        Reading {
            requests,
            current,
            pending,
        }
    }

    #[test]
    fn up_at_once_but_not_while_a_worker_is_coming_up() {
        let mut scaler = Scaler::default();
        let now = shell::clock::now();
        assert_eq!(scaler.decide(reading(9, 1, 0), &rules(1, 8), now), 3);
        assert_eq!(scaler.decide(reading(40, 3, 2), &rules(1, 8), now), 3);
        assert_eq!(scaler.decide(reading(40, 3, 0), &rules(1, 8), now), 8);
    }

    #[test]
    fn down_only_after_every_reading_of_the_delay_was_low() {
        let mut scaler = Scaler::default();
        let start = shell::clock::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in (0..30).step_by(5) {
            assert_eq!(scaler.decide(reading(4, 4, 0), &rules(1, 8), at(second)), 4);
        }
        // One busy reading in the middle starts the delay again.
        assert_eq!(scaler.decide(reading(16, 4, 0), &rules(1, 8), at(29)), 4);
        for second in (30..59).step_by(5) {
            assert_eq!(scaler.decide(reading(8, 4, 0), &rules(1, 8), at(second)), 4);
        }
        assert_eq!(
            scaler.decide(reading(4, 4, 0), &rules(1, 8), at(60)),
            2,
            "as low as the highest reading"
        );
    }

    #[test]
    fn to_zero_when_nobody_asks_and_back_with_the_first_request() {
        let mut scaler = Scaler::default();
        let start = shell::clock::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(scaler.decide(reading(0, 1, 0), &rules(0, 8), at(0)), 1);
        assert_eq!(scaler.decide(reading(0, 1, 0), &rules(0, 8), at(59)), 1);
        assert_eq!(scaler.decide(reading(0, 1, 0), &rules(0, 8), at(60)), 0);
        assert_eq!(scaler.decide(reading(1, 0, 0), &rules(0, 8), at(61)), 1);
        assert_eq!(
            scaler.decide(reading(0, 1, 0), &rules(0, 8), at(62)),
            1,
            "the idle time begins anew"
        );
    }

    proptest! {
        #[test]
        fn never_outside_its_limits_and_never_up_while_workers_come_up(
            loads in prop::collection::vec((0..200_usize, 0..3_usize), 1..60), least in 0..3_i32, spread in 0..6_i32,
        ) {
            let rules = rules(least, (least + spread).max(1));
            let (low, high) = (least.unsigned_abs() as usize, rules.max_replicas.unsigned_abs() as usize);
            let start = shell::clock::now();
            let mut scaler = Scaler::default();
            let mut current = low;
            for (step, (requests, pending)) in loads.into_iter().enumerate() {
                let now = start + PERIOD * u32::try_from(step).unwrap();
                let next = scaler.decide(reading(requests, current, pending), &rules, now);
                prop_assert!((low..=high).contains(&next));
                if pending > 0 && current > 0 {
                    prop_assert!(next <= current);
                }
                if least > 0 {
                    prop_assert!(next >= 1);
                }
                current = next;
            }
        }
    }
}
