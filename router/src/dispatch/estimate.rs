//! How long a worker's queue is now, from a report of a moment ago and from what
//! this router itself has sent and got back since.
//!
//! `q = max(own, reported + M · (own - own when the report was taken))`, with M
//! the number of router replicas: each is taken to have done what this one did.
//! With M left out, sixteen replicas add 1 each where the truth is 16 (Dynamo
//! issue 589), and with reports alone all run to the same worker (Mitzenmacher,
//! "How useful is old information?", 2000).
//!
//! This compares workers. Whether one has a free slot goes by what is certain, without M:
//! what others may have sent meanwhile keeps nobody waiting beside a free slot, as the
//! next report tells.

use std::time::{Duration, Instant};

use protocol::load::LoadReport;

/// One request, in the unit of [`Own::weight`].
pub(crate) const UNIT: u64 = 1000;

/// What this router has with one worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Own {
    /// Requests.
    pub(crate) count: u32,
    /// The same, by size: a request of usual size is [`UNIT`].
    pub(crate) weight: u64,
}

/// A worker's report, and what was ours in it.
#[derive(Clone, Debug)]
pub(crate) struct Reported {
    /// What the worker said.
    pub(crate) load: LoadReport,
    /// When it was taken, by our clock.
    pub(crate) taken: Instant,
    /// What this router had with the worker at that moment.
    pub(crate) own_then: Own,
}

/// The estimated queue of a worker, running requests included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Queue {
    /// In requests, as far as it is certain; to be compared with slots.
    pub(crate) count: u64,
    /// In [`UNIT`]s, with what other routers may have done since the report; to be compared
    /// with other workers.
    pub(crate) weight: u64,
}

impl Reported {
    /// How old the report is.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.taken)
    }
}

/// The estimated queue. `report` is `None` unless the reports of all candidates
/// are fresh, so that two kinds of figures are never compared.
pub(crate) fn queue(own: Own, report: Option<&Reported>, routers: u32) -> Queue {
    let Some(report) = report else {
        return Queue {
            count: own.count.into(),
            weight: own.weight,
        };
    };
    let reported = u64::from(report.load.queue_length());
    let then = report.own_then;
    Queue {
        count: extrapolate(reported, own.count.into(), then.count.into(), 1),
        weight: extrapolate(reported * UNIT, own.weight, then.weight, routers),
    }
}

fn extrapolate(reported: u64, own: u64, own_then: u64, routers: u32) -> u64 {
    let routers = u64::from(routers.max(1));
    let grown = reported + own.saturating_sub(own_then) * routers;
    grown
        .saturating_sub(own_then.saturating_sub(own) * routers)
        .max(own)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn own(count: u32) -> Own {
        Own {
            count,
            weight: u64::from(count) * UNIT,
        }
    }

    fn queue_of(reported: u32, then: u32, now: u32, routers: u32) -> Queue {
        let report = Reported {
            load: LoadReport {
                running: reported,
                ..LoadReport::default()
            },
            taken: shell::clock::now(),
            own_then: own(then),
        };
        queue(own(now), Some(&report), routers)
    }

    fn estimate(reported: u32, then: u32, now: u32, routers: u32) -> u64 {
        queue_of(reported, then, now, routers).weight / UNIT
    }

    #[test]
    fn what_others_may_have_sent_takes_no_slot() {
        assert_eq!(queue_of(10, 2, 3, 4).count, 11);
        assert_eq!(queue_of(10, 2, 1, 4).count, 9);
        assert_eq!(queue_of(0, 0, 3, 4).count, 3);
    }

    #[test]
    fn what_was_sent_and_finished_since_the_report_counts_for_every_replica() {
        assert_eq!(estimate(10, 2, 2, 4), 10);
        assert_eq!(estimate(10, 2, 3, 4), 14);
        assert_eq!(estimate(10, 2, 1, 4), 6);
        assert_eq!(estimate(3, 2, 0, 4), 0);
    }

    #[test]
    fn a_worker_that_reports_too_little_is_known_by_our_own_count() {
        assert_eq!(estimate(0, 9, 9, 4), 9);
    }

    #[test]
    fn without_reports_our_own_count_is_all() {
        assert_eq!(queue(own(7), None, 4).count, 7);
    }

    proptest! {
        #[test]
        fn the_estimate_is_never_less_than_our_own(r in 0u32..99, t in 0u32..99, n in 0u32..99, m in 0u32..20) {
            prop_assert!(estimate(r, t, n, m) >= u64::from(n));
            prop_assert!(queue_of(r, t, n, m).count >= u64::from(n));
        }
    }
}
