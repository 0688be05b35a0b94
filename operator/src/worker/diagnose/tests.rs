//! One case for every cause, and for what is no cause.

use std::time::Duration;

use crds::name::WORKER_CONTAINER;
use serde_json::{Value, json};

use super::*;
use crate::heartbeat::Heartbeats;
use crate::key::Key;
use crate::worker::life::{is_available, life};

fn worker(status: &Value) -> LlavaWorker {
    serde_json::from_value(json!({
        "apiVersion": "llava.dev/v1alpha1", "kind": "LlavaWorker",
        "metadata": {"namespace": "ns", "name": "llava-abc-0", "uid": "w"},
        "spec": {"deployment": "llava", "revision": "abc", "template": {
            "model": {"source": {}}, "engine": {}, "drain": {"timeout": "1m"}}},
        "status": status,
    }))
    .unwrap()
}

fn pod(node: Option<&str>, status: &Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {
            "name": "llava-abc-0", "uid": "p",
            "ownerReferences": [{"apiVersion": "llava.dev/v1alpha1", "kind": "LlavaWorker", "name": "llava-abc-0", "uid": "w", "controller": true}],
        },
        "spec": {"containers": [], "nodeName": node},
        "status": status,
    }))
    .unwrap()
}

fn said(worker: &LlavaWorker, pod: Option<&Pod>, beat: Option<&Beat>) -> Diagnosis {
    diagnose(worker, life(worker, pod, None), pod, beat)
}

fn container(state: &Value, last: &Value) -> Value {
    json!({"phase": "Running", "containerStatuses": [{
        "name": WORKER_CONTAINER, "image": "", "imageID": "", "ready": false, "restartCount": 3,
        "state": state, "lastState": last,
    }]})
}

#[test]
fn every_cause_has_its_own_reason_and_the_words_of_whoever_knows() {
    let none = json!({});
    let cases = [
        (
            None,
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."}]}),
            Phase::Pending,
            "Unschedulable",
            "Insufficient nvidia.com/gpu",
        ),
        (
            None,
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "persistentvolumeclaim \"models\" not found"}]}),
            Phase::Pending,
            "VolumeClaimMissing",
            "\"models\" not found",
        ),
        (
            Some("n"),
            container(
                &json!({"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image \"x\""}}),
                &none,
            ),
            Phase::Pending,
            "ImagePullBackOff",
            "pulling image",
        ),
        (
            Some("n"),
            container(
                &json!({"waiting": {"reason": "CreateContainerConfigError", "message": "secret \"hub\" not found"}}),
                &none,
            ),
            Phase::Pending,
            "SecretMissing",
            "\"hub\"",
        ),
        (
            Some("n"),
            container(
                &json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}}),
                &json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}),
            ),
            Phase::Unready,
            "OOMKilled",
            "raise resources.limits.memory",
        ),
        (
            Some("n"),
            container(
                &json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}}),
                &json!({"terminated": {"exitCode": 1, "reason": "Error", "message": "cannot read config.json: no such file"}}),
            ),
            Phase::Unready,
            "CrashLoopBackOff",
            "cannot read config.json: no such file",
        ),
        (
            Some("n"),
            container(&json!({"running": {}}), &none),
            Phase::Loading,
            "Loading",
            "brings the model up",
        ),
        (
            Some("n"),
            json!({"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."}),
            Phase::Failed,
            "Evicted",
            "low on resource",
        ),
        (
            Some("n"),
            json!({"phase": "Failed", "reason": "OutOfnvidia.com/gpu", "message": "Node didn't have enough resource: nvidia.com/gpu"}),
            Phase::Failed,
            "OutOfDevices",
            "enough resource",
        ),
        (
            Some("n"),
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}),
            Phase::Ready,
            "Ready",
            "answers",
        ),
    ];
    for (node, status, phase, reason, words) in cases {
        let pod = pod(node, &status);
        let found = said(&worker(&none), Some(&pod), None);
        assert_eq!(
            (found.phase, found.reason.as_str()),
            (phase, reason),
            "{status}"
        );
        assert!(found.message.contains(words), "{}", found.message);
    }
}

#[test]
fn a_pod_that_is_gone_after_it_was_there_ends_the_worker_once_that_is_certain() {
    let untold = worker(&json!({}));
    assert_eq!(life(&untold, None, None), Life::Unborn);
    assert_eq!(
        life(&untold, None, Some("p")),
        Life::Unseen,
        "its status may be behind"
    );
    let born = worker(&json!({"podUID": "p"}));
    assert_eq!(
        life(&born, None, None),
        Life::Unseen,
        "a cache may be behind"
    );
    let confirmed = worker(&json!({"podUID": "p", "phase": "Failed", "reason": "Evicted"}));
    assert_eq!(life(&confirmed, None, None), Life::Ended);
    assert_eq!(said(&confirmed, None, None).reason, "Evicted");
}

#[test]
fn a_foreign_pod_with_our_name_is_never_taken_for_ours() {
    let mut foreign = pod(
        Some("n"),
        &json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}),
    );
    foreign.owner_references_mut()[0].uid = "another".into();
    let worker = worker(&json!({}));
    assert!(!is_available(&worker, Some(&foreign)));
    assert_eq!(
        said(&worker, Some(&foreign), None).reason,
        reason::NAME_TAKEN
    );
}

#[test]
fn a_worker_that_neither_is_ready_nor_beats_may_have_lost_its_node() {
    let lease = |second: i64| {
        serde_json::from_value(json!({
            "metadata": {"namespace": "ns", "name": "llava-abc-0"},
            "spec": {"holderIdentity": "p", "renewTime": format!("2026-01-01T00:00:0{second}.000000Z")},
        }))
        .unwrap()
    };
    let mut beats = Heartbeats::default();
    let start = shell::clock::now();
    beats.apply(&lease(1), start);
    beats.apply(&lease(2), start);
    let key = Key::new("ns", "llava-abc-0");
    let pod = pod(Some("n"), &container(&json!({"running": {}}), &json!({})));
    let word = |beats: &Heartbeats| {
        let beat = beats.get(&key, "p");
        said(&worker(&json!({})), Some(&pod), beat).reason
    };
    assert_eq!(word(&beats), reason::LOADING);
    beats.sweep(start + Duration::from_secs(60));
    assert_eq!(word(&beats), reason::HEARTBEAT_LOST);
}
