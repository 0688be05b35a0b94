//! Since when a rollout has come no further (pure). What counts is what counts for a
//! Deployment of Kubernetes: more workers of the spec's template, fewer of others,
//! more that answer. It is compared with the furthest that this rollout came, and
//! not with the moment before: a worker that keeps ending and being replaced comes
//! back to where it was, again and again.

use crds::LlavaDeploymentStatus;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// What a rollout is to reach. Another aim is another rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Aim {
    /// The deployment, of which there may be another of this name.
    pub uid: Option<String>,
    /// The spec's generation.
    pub generation: Option<i64>,
    /// The hash of its template.
    pub revision: String,
    /// How many workers are wished for.
    pub replicas: usize,
}

/// How far a rollout is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Workers of the spec's template.
    pub updated: usize,
    /// Workers of others.
    pub old: usize,
    /// Workers that answer.
    pub available: usize,
}

/// The furthest that the rollout under way came, and when.
#[derive(Debug, Default)]
pub struct Progress {
    furthest: Option<(Aim, Reach, Time)>,
}

impl Progress {
    /// Notes how far it is `now`, and returns when it last came further. A process that
    /// knows nothing yet goes on from the status that was `told`.
    pub fn note(
        &mut self,
        aim: Aim,
        reach: Reach,
        told: Option<&LlavaDeploymentStatus>,
        now: Time,
    ) -> Time {
        let known = match self.furthest.take() {
            Some((known, furthest, since)) => (known == aim).then_some((furthest, since)),
            None => told.and_then(|told| aim.reached(told)),
        };
        let (furthest, since) = match known {
            Some((furthest, since)) if furthest.with(reach) == furthest => (furthest, since),
            Some((furthest, _)) => (furthest.with(reach), now),
            None => (reach, now),
        };
        self.furthest = Some((aim, furthest, since.clone()));
        since
    }
}

impl Aim {
    /// How far a status says that it is, and since when, if it tells of this rollout.
    fn reached(&self, told: &LlavaDeploymentStatus) -> Option<(Reach, Time)> {
        let count = |figure: i32| usize::try_from(figure).unwrap_or_default();
        let same = told.observed_generation == self.generation
            && told.update_revision.as_ref() == Some(&self.revision)
            && count(told.desired_replicas) == self.replicas;
        let since = told.last_progress_time.clone().filter(|_| same)?;
        let reach = Reach {
            updated: count(told.updated_replicas),
            old: count(told.replicas.saturating_sub(told.updated_replicas)),
            available: count(told.available_replicas),
        };
        Some((reach, since))
    }
}

impl Reach {
    /// The furthest of both in each respect. Workers that answer are counted anew with
    /// each that is replaced: those before were of another template.
    fn with(self, other: Self) -> Self {
        let replaced = other.updated > self.updated || other.old < self.old;
        Self {
            updated: self.updated.max(other.updated),
            old: self.old.min(other.old),
            available: match replaced {
                true => other.available,
                false => self.available.max(other.available),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::now::Now;

    fn aim(replicas: usize) -> Aim {
        Aim {
            uid: None,
            generation: Some(1),
            revision: "new".to_owned(),
            replicas,
        }
    }

    fn reach(updated: usize, old: usize, available: usize) -> Reach {
        Reach {
            updated,
            old,
            available,
        }
    }

    fn at(start: &Now, second: u64) -> Time {
        let wall = start.wall + Duration::from_secs(second);
        Now { wall, ..*start }.time()
    }

    #[test]
    fn a_worker_that_keeps_ending_and_being_replaced_comes_no_further() {
        let (mut progress, start) = (Progress::default(), Now::read());
        let begun = progress.note(aim(2), reach(2, 0, 0), None, at(&start, 0));
        let answers = progress.note(aim(2), reach(2, 0, 1), None, at(&start, 5));
        assert!(answers > begun);
        for second in (10..600).step_by(10) {
            let held = progress.note(aim(2), reach(1, 0, 1), None, at(&start, second));
            let replaced = progress.note(aim(2), reach(2, 0, 1), None, at(&start, second + 5));
            assert_eq!((&held, &replaced), (&answers, &answers));
        }
        let all = progress.note(aim(2), reach(2, 0, 2), None, at(&start, 700));
        assert_eq!(all, at(&start, 700));
    }

    #[test]
    fn an_old_worker_that_goes_and_another_aim_are_progress() {
        let (mut progress, start) = (Progress::default(), Now::read());
        progress.note(aim(2), reach(1, 2, 2), None, at(&start, 0));
        let fewer = progress.note(aim(2), reach(1, 1, 1), None, at(&start, 1));
        assert_eq!(fewer, at(&start, 1));
        let other = progress.note(aim(3), reach(1, 1, 1), None, at(&start, 2));
        assert_eq!(other, at(&start, 2));
    }

    #[test]
    fn those_that_answer_are_progress_again_after_all_were_replaced() {
        let (mut progress, start) = (Progress::default(), Now::read());
        let mut note = |reach, second| progress.note(aim(8), reach, None, at(&start, second));
        note(reach(0, 8, 8), 0);
        note(reach(0, 0, 0), 1);
        note(reach(8, 0, 0), 2);
        for available in 1..=8 {
            let second = 300 * available;
            let came = note(reach(8, 0, usize::try_from(available).unwrap()), second);
            assert_eq!(came, at(&start, second));
        }
    }

    #[test]
    fn a_restart_goes_on_from_what_the_status_says() {
        let start = Now::read();
        let mut told = LlavaDeploymentStatus {
            observed_generation: Some(1),
            update_revision: Some("new".to_owned()),
            desired_replicas: 2,
            replicas: 3,
            updated_replicas: 1,
            available_replicas: 2,
            last_progress_time: Some(at(&start, 0)),
            ..LlavaDeploymentStatus::default()
        };
        let note = |told: &LlavaDeploymentStatus, reach: Reach| {
            let mut progress = Progress::default();
            progress.note(aim(2), reach, Some(told), at(&start, 9))
        };
        assert_eq!(note(&told, reach(1, 2, 2)), at(&start, 0));
        assert_eq!(note(&told, reach(1, 2, 3)), at(&start, 9));
        told.update_revision = Some("old".to_owned());
        assert_eq!(note(&told, reach(1, 2, 2)), at(&start, 9));
    }
}
