//! Whether a worker may be picked, judged by what came back from it. Only
//! failures of transport and 5xx count; a 4xx is the caller's, and 429 or 503
//! says "busy". A worker is ejected for a while, tried with one request, and
//! comes back when that succeeds; one that broke answers off, when one came to
//! its end. Active probes find a worker that is gone or hangs, and call back one
//! that recovered.

use std::time::{Duration, Instant};

/// Breaks of an open connection that eject, if no answer came to its end between them.
const BROKEN: u32 = 3;
/// 5xx answers in a row that eject, if others do better.
const SERVER_ERRORS: u32 = 5;
/// Probes in a row without an answer that call a worker down.
const PROBES: u32 = 2;
/// The first ejection; each further one is twice as long.
const BASE: Duration = Duration::from_secs(1);
/// The longest ejection.
const LONGEST: Duration = Duration::from_secs(30);
/// Ejections are forgotten after this long.
const FORGET: Duration = Duration::from_secs(300);

/// How an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No connection.
    Connect,
    /// The connection broke, or the worker hung.
    Broken,
    /// The worker answered 5xx other than 503.
    Server,
}

/// What may be done with a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Standing {
    /// It takes requests.
    In,
    /// It takes one request, on trial.
    Trial,
    /// It rests.
    Ejected,
    /// Probes find nobody there.
    Down,
}

/// The record of one worker.
#[derive(Clone, Debug, Default)]
pub(crate) struct Health {
    broken: u32,
    server_errors: u32,
    unanswered_probes: u32,
    ejected: Option<Ejection>,
    ejections: u32,
    last_ejection: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Ejection {
    until: Instant,
    on_trial: bool,
    cause: Failure,
}

impl Health {
    /// What may be done with the worker now.
    pub(crate) fn standing(&self, now: Instant) -> Standing {
        match self.ejected {
            _ if self.unanswered_probes >= PROBES => Standing::Down,
            None => Standing::In,
            Some(ejection) if now >= ejection.until && !ejection.on_trial => Standing::Trial,
            Some(_) => Standing::Ejected,
        }
    }

    /// 5xx answers in a row.
    pub(crate) fn server_errors(&self) -> u32 {
        self.server_errors
    }

    /// Whether nothing is known of a probe that it left unanswered.
    pub(crate) fn answers_probes(&self) -> bool {
        self.unanswered_probes == 0
    }

    /// The worker answered something, and so is there.
    pub(crate) fn found(&mut self, now: Instant) {
        let was_away = self.unanswered_probes >= PROBES;
        self.unanswered_probes = 0;
        if was_away {
            self.broken = 0;
        }
        // That it is there proves nothing against one that broke answers off or failed,
        // unless it went away since.
        if let Some(ejection) = &mut self.ejected
            && (was_away || ejection.cause == Failure::Connect)
        {
            ejection.cause = Failure::Connect;
            ejection.until = ejection.until.min(now);
        }
    }

    /// A good answer began. Of a worker that breaks answers off this says nothing yet.
    pub(crate) fn begun(&mut self) {
        self.server_errors = 0;
        if self.ejected.is_some_and(|e| e.cause != Failure::Broken) {
            self.ejected = None;
        }
    }

    /// A good answer came to its end.
    pub(crate) fn succeeded(&mut self) {
        self.broken = 0;
        self.server_errors = 0;
        self.ejected = None;
    }

    /// The worker refused for being busy, or the caller left before the end: no verdict.
    pub(crate) fn neutral(&mut self) {
        if let Some(ejection) = &mut self.ejected {
            ejection.on_trial = false;
        }
    }

    /// An attempt failed. `least_elsewhere` is the smallest number of 5xx in a
    /// row among the other workers: a request that poisons each worker it meets
    /// makes none of them worse than the others. Returns whether the worker is
    /// to be ejected, if the pool can spare it.
    pub(crate) fn failed(&mut self, failure: Failure, least_elsewhere: u32) -> bool {
        self.neutral();
        match failure {
            Failure::Connect => true,
            Failure::Broken => {
                self.broken += 1;
                self.broken >= BROKEN
            }
            Failure::Server => {
                self.server_errors += 1;
                self.server_errors >= SERVER_ERRORS + 3 * least_elsewhere
            }
        }
    }

    /// Ejects the worker for such failures.
    pub(crate) fn eject(&mut self, cause: Failure, now: Instant) {
        let old = |last: Instant| now.saturating_duration_since(last) > FORGET;
        if self.last_ejection.is_some_and(old) {
            self.ejections = 0;
        }
        let length = BASE.saturating_mul(1 << self.ejections.min(5)).min(LONGEST);
        self.ejections += 1;
        self.last_ejection = Some(now);
        self.ejected = Some(Ejection {
            until: now + length,
            on_trial: false,
            cause,
        });
    }

    /// A request goes out on trial.
    pub(crate) fn try_out(&mut self) {
        if let Some(ejection) = &mut self.ejected {
            ejection.on_trial = true;
        }
    }

    /// A probe was answered, or not. Returns whether the standing changed.
    pub(crate) fn probed(&mut self, answered: bool, now: Instant) -> bool {
        let before = self.standing(now);
        if answered {
            self.found(now);
        } else {
            self.unanswered_probes = self.unanswered_probes.saturating_add(1);
        }
        self.standing(now) != before
    }
}

/// Whether one more of `workers` may be ejected when some are away already: at most half
/// are, and never the last.
pub(crate) fn can_spare(workers: usize, away: usize) -> bool {
    (away + 1) * 2 <= workers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_connection_ejects_and_a_trial_brings_back() {
        let now = shell::clock::now();
        let mut health = Health::default();
        assert!(health.failed(Failure::Connect, 0));
        health.eject(Failure::Connect, now);
        assert_eq!(health.standing(now), Standing::Ejected);
        let later = now + BASE;
        assert_eq!(health.standing(later), Standing::Trial);
        health.try_out();
        assert_eq!(health.standing(later), Standing::Ejected);
        health.neutral();
        assert_eq!(health.standing(later), Standing::Trial);
        health.begun();
        assert_eq!(health.standing(later), Standing::In);
    }

    #[test]
    fn a_worker_that_breaks_answers_off_rests_whatever_it_says_until_one_is_whole() {
        let now = shell::clock::now();
        let mut health = Health::default();
        let ejects = [(); 3].map(|()| {
            health.begun();
            health.failed(Failure::Broken, 0)
        });
        assert_eq!(ejects, [false, false, true]);
        health.eject(Failure::Broken, now);
        assert!(!health.probed(true, now));
        assert_eq!(health.standing(now), Standing::Ejected);
        let later = now + BASE;
        health.try_out();
        health.begun();
        assert_eq!(health.standing(later), Standing::Ejected);
        health.succeeded();
        assert_eq!(health.standing(later), Standing::In);
        assert!(!health.failed(Failure::Broken, 0));
    }

    #[test]
    fn a_probe_ends_the_rest_of_one_that_refused_connections_or_was_away() {
        let now = shell::clock::now();
        let mut refused = Health::default();
        refused.eject(Failure::Connect, now);
        assert!(refused.probed(true, now));
        assert_eq!(refused.standing(now), Standing::Trial);

        let mut restarted = Health::default();
        restarted.eject(Failure::Broken, now);
        (0..PROBES).for_each(|_| _ = restarted.probed(false, now));
        assert!(restarted.probed(true, now));
        assert_eq!(restarted.standing(now), Standing::Trial);
        restarted.begun();
        assert_eq!(restarted.standing(now), Standing::In);
    }

    #[test]
    fn a_poison_request_makes_no_worker_an_outlier() {
        let mut workers = [Health::default(), Health::default(), Health::default()];
        for turn in 0..60 {
            let least = workers.iter().map(Health::server_errors).min().unwrap();
            assert!(!workers[turn % 3].failed(Failure::Server, least) || turn > 57);
        }
    }

    #[test]
    fn one_worker_that_only_fails_is_an_outlier() {
        let mut health = Health::default();
        let ejects: Vec<bool> = (0..5).map(|_| health.failed(Failure::Server, 0)).collect();
        assert_eq!(ejects, [false, false, false, false, true]);
    }

    #[test]
    fn probes_call_a_worker_down_and_back() {
        let now = shell::clock::now();
        let mut health = Health::default();
        assert!(!health.probed(false, now));
        assert!(health.probed(false, now));
        assert_eq!(health.standing(now), Standing::Down);
        assert!(health.probed(true, now));
        assert_eq!(health.standing(now), Standing::In);
    }

    #[test]
    fn ejections_grow_longer_up_to_a_limit() {
        let mut now = shell::clock::now();
        let mut health = Health::default();
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            health.eject(Failure::Broken, now);
            now += Duration::from_secs(seconds);
            assert_eq!(health.standing(now), Standing::Trial);
            assert_eq!(
                health.standing(now - Duration::from_millis(1)),
                Standing::Ejected
            );
        }
    }

    #[test]
    fn at_most_half_and_never_the_last_is_ejected() {
        assert!(!can_spare(1, 0));
        assert!(can_spare(2, 0));
        assert!(!can_spare(2, 1));
        assert!(!can_spare(3, 1));
        assert!(can_spare(4, 1));
    }
}
