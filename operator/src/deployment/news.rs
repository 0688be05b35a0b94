//! What of a deployment's new status is news: when it is written, and which
//! Events go with it (pure).

use crds::LlavaDeploymentStatus;
use crds::condition::{deployment as kind, reason};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::events::{Event, EventType};

use super::report::condition;
use crate::pace::Change;
use crate::worker::news;

/// Whether a deployment passes through this word by itself on its way.
fn passes(word: &str) -> bool {
    news::passes(word)
        || matches!(
            word,
            reason::SCALING | reason::UPDATING | reason::WORKERS_MISSING
        )
}

/// How much the status changed. Counts and messages of workers that come up pass;
/// what was asked for, what became true, and every trouble are news.
#[must_use]
pub fn change(before: Option<&LlavaDeploymentStatus>, after: &LlavaDeploymentStatus) -> Change {
    let Some(before) = before else {
        return Change::News;
    };
    if before == after {
        return Change::None;
    }
    let loadless = LlavaDeploymentStatus {
        queue_length: before.queue_length,
        running_requests: before.running_requests,
        ..after.clone()
    };
    if loadless == *before {
        return Change::Load;
    }
    // All but the figures and words that pass.
    let stepless = LlavaDeploymentStatus {
        replicas: before.replicas,
        ready_replicas: before.ready_replicas,
        updated_replicas: before.updated_replicas,
        available_replicas: before.available_replicas,
        last_progress_time: before.last_progress_time.clone(),
        summary: before.summary.clone(),
        conditions: before.conditions.clone(),
        ..loadless
    };
    let step = |from: &str, to: &str| from == to || (passes(from) && passes(to));
    let summaries = step(
        before.summary.as_deref().unwrap_or_default(),
        after.summary.as_deref().unwrap_or_default(),
    );
    let same = |(from, to): (&Condition, &Condition)| {
        from.type_ == to.type_ && from.status == to.status && step(&from.reason, &to.reason)
    };
    let conditions = before.conditions.len() == after.conditions.len()
        && before.conditions.iter().zip(&after.conditions).all(same);
    if stepless == *before && summaries && conditions {
        Change::Passing
    } else {
        Change::News
    }
}

/// The Events that a change of status is worth, each once per transition.
#[must_use]
pub fn events(before: Option<&LlavaDeploymentStatus>, after: &LlavaDeploymentStatus) -> Vec<Event> {
    let mut events = Vec::new();
    let mut tell = |type_: EventType, reason: &str, note: String| {
        events.push(Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note),
            action: "Reconcile".to_owned(),
            secondary: None,
        });
    };
    let was = |kind: &str| before.and_then(|before| condition(before, kind));
    let grows = before.is_some_and(|before| after.desired_replicas > before.desired_replicas);
    if let Some(before) = before.filter(|before| before.desired_replicas != after.desired_replicas)
    {
        let (from, to) = (before.desired_replicas, after.desired_replicas);
        let word = if to > from { "ScaledUp" } else { "ScaledDown" };
        tell(
            EventType::Normal,
            word,
            format!("from {from} to {to} workers"),
        );
    }
    if let Some(is) = condition(after, kind::PROGRESSING) {
        let changed = was(kind::PROGRESSING).is_none_or(|was| was.reason != is.reason);
        match is.reason.as_str() {
            _ if !changed => {}
            reason::UPDATING => tell(EventType::Normal, "RolloutStarted", is.message.clone()),
            reason::COMPLETE => tell(EventType::Normal, "RolloutComplete", is.message.clone()),
            reason::PAUSED => tell(EventType::Normal, "RolloutPaused", is.message.clone()),
            _ if is.status == "False" => tell(EventType::Warning, &is.reason, is.message.clone()),
            _ => {}
        }
    }
    for (kind, bad, word) in [
        (kind::AVAILABLE, "False", "Unavailable"),
        (kind::DEGRADED, "True", "Degraded"),
        (kind::DELETE_FIRST, "True", reason::NO_ROOM_FOR_SURGE),
    ] {
        let Some(is) = condition(after, kind) else {
            continue;
        };
        let before = was(kind).map(|was| was.status.as_str());
        // A deployment that is to grow, or was never available, has not become unavailable.
        let first = kind == kind::AVAILABLE && (before.is_none() || grows);
        if is.status == bad && before != Some(bad) && !first {
            tell(EventType::Warning, word, is.message.clone());
        }
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conditions::{Conditions, Truth};
    use crate::now::Now;

    fn status(summary: &str, available: i32, word: &str) -> LlavaDeploymentStatus {
        let now = Now::read();
        let mut conditions = Conditions::new(&[], Some(1), &now);
        let enough = Truth::from(available == 5);
        conditions.set(kind::AVAILABLE, enough, word, "words");
        LlavaDeploymentStatus {
            desired_replicas: 5,
            available_replicas: available,
            summary: Some(summary.to_owned()),
            conditions: conditions.finish(),
            ..LlavaDeploymentStatus::default()
        }
    }

    #[test]
    fn workers_that_come_up_one_by_one_pass_and_the_last_of_them_is_news() {
        let first = status(reason::POD_MISSING, 0, reason::POD_MISSING);
        assert_eq!(change(None, &first), Change::News);
        let some = status(reason::SCALING, 2, reason::LOADING);
        assert_eq!(change(Some(&first), &some), Change::Passing);
        let more = status(reason::SCALING, 4, reason::LOADING);
        assert_eq!(change(Some(&some), &more), Change::Passing);
        let all = status(reason::READY, 5, reason::READY);
        assert_eq!(change(Some(&more), &all), Change::News);
        assert_eq!(change(Some(&all), &all), Change::None);
    }

    #[test]
    fn trouble_and_another_wish_are_news_and_load_alone_is_load() {
        let some = status(reason::SCALING, 2, reason::LOADING);
        let crashed = status("OOMKilled", 2, "OOMKilled");
        assert_eq!(change(Some(&some), &crashed), Change::News);
        assert_eq!(change(Some(&crashed), &some), Change::News);
        let wish = LlavaDeploymentStatus {
            desired_replicas: 6,
            ..some.clone()
        };
        assert_eq!(change(Some(&some), &wish), Change::News);
        let busy = LlavaDeploymentStatus {
            queue_length: 9,
            ..some.clone()
        };
        assert_eq!(change(Some(&some), &busy), Change::Load);
    }
}
