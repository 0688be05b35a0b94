//! What nodes warn of. A Pod whose volumes cannot be mounted says so in Events alone,
//! and those are in no cache: the API server reads all of a namespace for every
//! question about one Pod. So one answer serves all workers of a namespace for a
//! moment, however many of them start at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;

use crate::effects::Effects;
use crate::key::Key;

/// For how long an answer is good.
const FRESH: Duration = Duration::from_secs(1);
/// The most Events in one answer. Where there are more, each Pod is asked about.
const MANY: u32 = 500;

/// The last thing that was said of a Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// One word.
    pub reason: String,
    /// Plain words.
    pub message: String,
    at: Option<Timestamp>,
}

#[derive(Debug, Default)]
struct Known {
    asked: Option<Instant>,
    whole: bool,
    /// By the Pods' UIDs.
    last: HashMap<String, Warning>,
}

/// The warnings by namespace.
#[derive(Debug, Default)]
pub struct Warnings {
    namespaces: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Known>>>>,
}

impl Warnings {
    /// The last warning about a Pod. None also when nobody answers: it is asked for again.
    pub async fn of(&self, pod: &Key, uid: &str, effects: &Effects) -> Option<Warning> {
        let known = {
            let mut all = self
                .namespaces
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            all.entry(pod.namespace.clone()).or_default().clone()
        };
        // Who comes while the question is under way waits for its answer.
        let mut known = known.lock().await;
        let now = shell::clock::now();
        let fresh = |asked| now.saturating_duration_since(asked) < FRESH;
        if !known.asked.is_some_and(fresh) {
            let (last, whole) = ask(&pod.namespace, "involvedObject.kind=Pod", effects).await?;
            let asked = Some(now);
            *known = Known { asked, whole, last };
        }
        if let Some(found) = known.last.get(uid) {
            return Some(found.clone());
        }
        if known.whole {
            return None;
        }
        drop(known);
        let about = format!("involvedObject.uid={uid}");
        let (mut last, _) = ask(&pod.namespace, &about, effects).await?;
        last.remove(uid)
    }
}

async fn ask(
    namespace: &str,
    about: &str,
    effects: &Effects,
) -> Option<(HashMap<String, Warning>, bool)> {
    let params = ListParams::default()
        .fields(&format!("{about},type=Warning"))
        .limit(MANY);
    let events = effects.list::<Event>(namespace, &params).await.ok()?;
    let whole = events.metadata.continue_.is_none_or(|rest| rest.is_empty());
    Some((latest(events.items), whole))
}

/// The last warning of each Pod. Those of the scheduler are history once there is a node.
fn latest(events: Vec<Event>) -> HashMap<String, Warning> {
    let mut last = HashMap::<String, Warning>::new();
    for event in events {
        let reason = event.reason.unwrap_or_default();
        let Some(uid) = event.involved_object.uid else {
            continue;
        };
        if reason == "FailedScheduling" {
            continue;
        }
        let series = event.last_timestamp.map(|time| time.0);
        let at = series.or_else(|| event.event_time.map(|time| time.0));
        let newer = last.get(&uid).is_none_or(|known| known.at <= at);
        if newer {
            let message = event.message.unwrap_or_default();
            let warning = Warning {
                reason,
                message,
                at,
            };
            last.insert(uid, warning);
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use http::Method;
    use serde_json::{Value, json};

    use super::*;
    use crate::fake::{self, Fake};

    fn event(uid: &str, reason: &str, second: u8) -> Value {
        json!({
            "metadata": {"name": format!("{uid}.{second}"), "namespace": "ns"},
            "involvedObject": {"kind": "Pod", "uid": uid},
            "reason": reason, "message": format!("{reason} of {uid}"),
            "lastTimestamp": format!("2026-01-01T00:00:{second:02}Z"),
        })
    }

    #[tokio::test]
    async fn one_question_serves_all_pods_of_a_namespace_for_a_moment() {
        let server = Fake::default();
        let client = server.client(|_| {
            let all = [
                event("a", "FailedMount", 2),
                event("a", "Older", 1),
                event("a", "FailedScheduling", 3),
                event("b", "FailedAttachVolume", 1),
            ];
            Some((
                200,
                json!({"apiVersion": "v1", "kind": "EventList", "metadata": {}, "items": all}),
            ))
        });
        let effects = fake::context(&client).effects;
        let warnings = Warnings::default();
        let key = |name| Key::new("ns", name);
        let reason = async |name, uid| {
            let found = warnings.of(&key(name), uid, &effects).await;
            found.map(|found| found.reason)
        };
        assert_eq!(reason("pod-a", "a").await.as_deref(), Some("FailedMount"));
        let other = reason("pod-b", "b").await;
        assert_eq!(other.as_deref(), Some("FailedAttachVolume"));
        assert_eq!(reason("pod-c", "c").await, None);
        let asked = server.asked(&Method::GET, "/events");
        assert_eq!(asked.len(), 1, "{asked:?}");
    }

    #[tokio::test]
    async fn where_there_are_too_many_each_pod_is_asked_about() {
        let server = Fake::default();
        let client = server.client(|_| {
            let all = [event("a", "FailedMount", 2)];
            let list = json!({"metadata": {"continue": "more"}, "items": all});
            Some((200, list))
        });
        let effects = fake::context(&client).effects;
        let warnings = Warnings::default();
        let found = warnings.of(&Key::new("ns", "pod-b"), "b", &effects).await;
        assert_eq!(found, None);
        assert_eq!(server.asked(&Method::GET, "/events").len(), 2);
    }
}
