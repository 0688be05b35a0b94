//! What of a worker's new status is news: when it is written, and which Event
//! goes with it (pure).

use crds::condition::reason;
use crds::worker::{Heartbeat, LlavaWorkerStatus, Phase};
use kube::runtime::events::{Event, EventType};

use crate::pace::Change;

/// Whether a worker that comes up or goes passes through this reason by itself.
#[must_use]
pub fn passes(word: &str) -> bool {
    matches!(
        word,
        reason::POD_MISSING
            | reason::UNSCHEDULED
            | reason::STARTING
            | reason::FETCHING
            | reason::LOADING
            | reason::WARMING_UP
            | reason::DRAINING
    )
}

/// How much the status changed. The time of the last heartbeat alone is nothing:
/// a cluster at rest must stay silent.
#[must_use]
pub fn change(before: Option<&LlavaWorkerStatus>, after: &LlavaWorkerStatus) -> Change {
    let on_its_way = |status: &LlavaWorkerStatus| status.reason.as_deref().is_none_or(passes);
    let Some(before) = before else {
        return if on_its_way(after) {
            Change::Passing
        } else {
            Change::News
        };
    };
    let timeless = LlavaWorkerStatus {
        last_heartbeat: before.last_heartbeat.clone(),
        ..after.clone()
    };
    if timeless == *before {
        return Change::None;
    }
    let loadless = LlavaWorkerStatus {
        queue_length: before.queue_length,
        running_requests: before.running_requests,
        ..timeless
    };
    if loadless == *before {
        return Change::Load;
    }
    let same_word = before.phase == after.phase && before.reason == after.reason;
    // Kubelet asks for readiness a moment after the start; until then it looks like this.
    let starts = after.reason.as_deref() == Some(reason::PROBE_FAILING);
    let steps = on_its_way(before) && (on_its_way(after) || starts);
    let silent = |status: &LlavaWorkerStatus| status.heartbeat == Heartbeat::Stale;
    if (same_word || steps) && silent(before) == silent(after) {
        Change::Passing
    } else {
        Change::News
    }
}

/// The Event that a change of status is worth, once per transition: trouble, and
/// its end. That a worker came up as it should is told by its deployment.
#[must_use]
pub fn event(before: Option<&LlavaWorkerStatus>, after: &LlavaWorkerStatus) -> Option<Event> {
    let was = before.map(|status| (status.phase, status.reason.as_deref()));
    if was == Some((after.phase, after.reason.as_deref())) {
        return None;
    }
    let trouble = in_trouble(after);
    let recovered = after.phase == Phase::Ready && before.is_some_and(in_trouble);
    (trouble || recovered).then(|| Event {
        type_: if trouble {
            EventType::Warning
        } else {
            EventType::Normal
        },
        reason: after.reason.clone().unwrap_or_default(),
        note: after.message.clone(),
        action: "Observe".to_owned(),
        secondary: None,
    })
}

fn in_trouble(status: &LlavaWorkerStatus) -> bool {
    let word = status.reason.as_deref().unwrap_or_default();
    match status.phase {
        Phase::Failed | Phase::Unready => true,
        Phase::Pending | Phase::Loading => !word.is_empty() && !passes(word),
        Phase::Ready => word == reason::HEARTBEAT_LOST,
        Phase::Draining => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::now::Now;

    fn status(phase: Phase, word: &str) -> LlavaWorkerStatus {
        LlavaWorkerStatus {
            phase,
            reason: Some(word.to_owned()),
            ..LlavaWorkerStatus::default()
        }
    }

    #[test]
    fn a_renewal_alone_is_nothing_and_load_alone_is_load() {
        let before = status(Phase::Ready, reason::READY);
        let renewed = LlavaWorkerStatus {
            last_heartbeat: Some(Now::read().time()),
            ..before.clone()
        };
        assert_eq!(change(Some(&before), &renewed), Change::None);
        let busy = LlavaWorkerStatus {
            running_requests: 3,
            ..renewed
        };
        assert_eq!(change(Some(&before), &busy), Change::Load);
    }

    #[test]
    fn steps_on_the_way_up_pass_and_the_way_s_end_and_its_obstacles_are_news() {
        let unscheduled = status(Phase::Pending, reason::UNSCHEDULED);
        let loading = status(Phase::Loading, reason::LOADING);
        let ready = status(Phase::Ready, reason::READY);
        let refused = status(Phase::Pending, reason::CREATE_REFUSED);
        assert_eq!(change(None, &unscheduled), Change::Passing);
        assert_eq!(change(Some(&unscheduled), &loading), Change::Passing);
        let unprobed = status(Phase::Unready, reason::PROBE_FAILING);
        assert_eq!(change(Some(&loading), &unprobed), Change::Passing);
        for (before, after) in [
            (None, &refused),
            (None, &ready),
            (Some(&loading), &ready),
            (Some(&ready), &loading),
            (Some(&ready), &unprobed),
            (Some(&loading), &refused),
            (Some(&refused), &loading),
        ] {
            assert_eq!(change(before, after), Change::News, "{before:?} {after:?}");
        }
    }

    #[test]
    fn a_heartbeat_that_stops_or_comes_back_is_news() {
        let fresh = LlavaWorkerStatus {
            heartbeat: Heartbeat::Fresh,
            ..status(Phase::Loading, reason::LOADING)
        };
        let stale = LlavaWorkerStatus {
            heartbeat: Heartbeat::Stale,
            ..fresh.clone()
        };
        let missing = status(Phase::Loading, reason::LOADING);
        assert_eq!(change(Some(&fresh), &stale), Change::News);
        assert_eq!(change(Some(&stale), &fresh), Change::News);
        assert_eq!(change(Some(&missing), &fresh), Change::Passing);
    }

    #[test]
    fn trouble_and_its_end_are_told_once_each_and_a_smooth_start_is_not() {
        let loading = status(Phase::Loading, reason::LOADING);
        let ready = status(Phase::Ready, reason::READY);
        let crashed = status(Phase::Unready, "OOMKilled");
        assert!(event(None, &loading).is_none());
        assert!(event(Some(&loading), &ready).is_none());
        let told = event(Some(&loading), &crashed).unwrap();
        assert!(matches!(told.type_, EventType::Warning));
        assert_eq!(told.reason, "OOMKilled");
        assert!(event(Some(&crashed), &crashed).is_none());
        let told = event(Some(&crashed), &ready).unwrap();
        assert!(matches!(told.type_, EventType::Normal));
    }
}
