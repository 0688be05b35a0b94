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
