//! Which of a deployment's troubles people should read first (pure): what stops
//! the operator itself, then the worker that is worst off.

use crds::condition::reason;
use crds::worker::{Heartbeat, Phase};

use super::apply::Applied;
use super::observe::Observed;
use crate::worker::news::passes;

/// The worker that is worst off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Worst {
    /// Why, in one word.
    pub(super) reason: String,
    /// Which worker, and why in plain words.
    pub(super) message: String,
    /// Whether it does not pass by itself.
    pub(super) notable: bool,
}

/// The cause that people should read first.
pub(super) fn worst(observed: &Observed, applied: &Applied) -> Option<Worst> {
    if let Some(refused) = &applied.refused {
        return Some(Worst {
            reason: refused.reason.to_owned(),
            message: refused.message.chars().take(1024).collect(),
            notable: true,
        });
    }
    if let Some(error) = applied.error.as_ref().filter(|error| !error.is_gone()) {
        return Some(Worst {
            reason: error.reason().to_owned(),
            message: error.to_string().chars().take(1024).collect(),
            notable: true,
        });
    }
    let silent = |heartbeat: Heartbeat| {
        let all = observed.workers.iter();
        all.filter(|(worker, _)| {
            worker
                .status
                .as_ref()
                .is_some_and(|status| status.heartbeat == heartbeat)
        })
        .count()
    };
    // When every Lease looks stale, the API server or this process is the suspect.
    let everybody_silent = silent(Heartbeat::Stale) > 1 && silent(Heartbeat::Fresh) == 0;
    let ranked = observed
        .workers
        .iter()
        .filter(|(_, member)| !member.terminating)
        .filter_map(|(worker, member)| {
            let status = worker.status.as_ref()?;
            let word = status.reason.clone()?;
            let lost = word == reason::HEARTBEAT_LOST && !everybody_silent;
            if member.available && !lost {
                return None;
            }
            let notable = lost || !(word == reason::READY || passes(&word));
            let rank = match status.phase {
                Phase::Failed => 4,
                Phase::Unready => 3,
                Phase::Pending => 2,
                Phase::Loading => 1,
                Phase::Draining | Phase::Ready => 0,
            };
            let said = status.message.as_deref().unwrap_or_default();
            let message = format!("worker {}: {said}", member.name);
            Some((
                (notable, rank, std::cmp::Reverse(member.name.clone())),
                word,
                message,
            ))
        });
    let ((notable, ..), reason, message) = ranked.max_by(|one, two| one.0.cmp(&two.0))?;
    Some(Worst {
        reason,
        message,
        notable,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use crds::worker::LlavaWorkerStatus;
    use kube::core::ObjectMeta;
    use protocol::load::Demand;
    use serde_json::json;

    use super::*;
    use crate::deployment::check::tests::deployment;
    use crate::deployment::observe::Found;
    use crate::deployment::plan::Member;
    use crate::key::Key;
    use crate::now::Now;
    use crate::worker::bare;
    use crate::worker::life::Life;

    /// A deployment whose workers all have ready Pods and these heartbeats.
    fn observed(heartbeats: &[Heartbeat]) -> Observed {
        let worker = |(number, heartbeat): (u32, &Heartbeat)| {
            let name = format!("llava-abc-{number}");
            let lost = *heartbeat == Heartbeat::Stale;
            let word = if lost {
                reason::HEARTBEAT_LOST
            } else {
                reason::READY
            };
            let mut worker = bare(&ObjectMeta {
                name: Some(name.clone()),
                ..ObjectMeta::default()
            });
            worker.status = Some(LlavaWorkerStatus {
                phase: Phase::Ready,
                reason: Some(word.to_owned()),
                heartbeat: *heartbeat,
                ..LlavaWorkerStatus::default()
            });
            let member = Member {
                uid: name.clone(),
                name,
                revision: "abc".to_owned(),
                ordinal: number,
                life: Life::Live,
                available: true,
                queue: 0,
                without_room: None,
                terminating: false,
                told: false,
                pod_lives: true,
            };
            (Arc::new(worker), member)
        };
        let source = json!({"http": {"url": "https://models.example/llava.tar"}});
        Observed {
            deployment: Arc::new(deployment(&json!({"model": {"source": source}}))),
            key: Key::new("ns", "llava"),
            workers: (0..).zip(heartbeats).map(worker).collect(),
            waiting: 0,
            running: 0,
            demand: Demand::default(),
            replace_in: Duration::ZERO,
            taken: Vec::new(),
            children: Found::default(),
            now: Now::read(),
        }
    }

    #[test]
    fn one_silent_worker_is_named_and_silence_of_all_names_nobody() {
        let (fresh, stale) = (Heartbeat::Fresh, Heartbeat::Stale);
        let worst = |heartbeats: &[Heartbeat]| worst(&observed(heartbeats), &Applied::default());
        let one = worst(&[fresh, stale, fresh]).unwrap();
        assert_eq!(one.reason, reason::HEARTBEAT_LOST);
        assert!(
            one.notable && one.message.contains("llava-abc-1"),
            "{one:?}"
        );
        assert_eq!(worst(&[fresh, fresh]), None);
        assert_eq!(worst(&[stale, stale, stale]), None);
        let missing = Heartbeat::Missing;
        assert_eq!(worst(&[stale, stale, missing]), None, "nobody is fresh");
    }
}
