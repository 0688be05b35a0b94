//! The Pod of a worker: the contract with llava-worker, inside what Pod Security
//! "restricted" allows. Nothing here is part of the revision, so that a better
//! probe in a later release restarts nobody.

use crds::name::{WORKER_CONTAINER, child_name, env, path};
use crds::source::Source;
use crds::worker::{LlavaWorker, WorkerTemplate};
use k8s_openapi::api::core::v1::Pod;
use protocol::port;
use serde_json::{Map, Value, json};

/// A user that no image needs to know.
const USER: i64 = 65532;

/// The Pod to create for a worker.
///
/// # Errors
/// When a field of the template has no place in a Pod; the API server would say the same.
pub fn pod(worker: &LlavaWorker) -> Result<Pod, serde_json::Error> {
    let name = worker.metadata.name.clone().unwrap_or_default();
    let template = &worker.spec.template;
    let options = &template.pod;
    let mut labels = options.labels.clone();
    labels.extend(super::labels(worker));
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": worker.metadata.namespace,
            "labels": labels,
            "annotations": options.annotations,
            "ownerReferences": [super::owner(worker, true)],
        },
        "spec": {
            "serviceAccountName": options.service_account_name,
            "automountServiceAccountToken": true,
            "enableServiceLinks": false,
            "hostname": name,
            "subdomain": child_name(&worker.spec.deployment),
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": template.drain.grace_period_seconds(),
            "securityContext": {
                "runAsNonRoot": true,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container(template)],
            "volumes": volumes(template),
            "imagePullSecrets": options.image_pull_secrets,
            "nodeSelector": options.node_selector,
            "tolerations": options.tolerations,
            "affinity": options.affinity,
            "topologySpreadConstraints": options.topology_spread_constraints,
            "priorityClassName": options.priority_class_name,
            "runtimeClassName": options.runtime_class_name,
        },
    });
    prune(&mut pod);
    serde_json::from_value(pod)
}

/// Drops what is empty, as nobody would write it.
fn prune(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.values_mut().for_each(prune);
        fields.retain(|name, field| match field {
            Value::Null => false,
            Value::Array(items) => !items.is_empty(),
            Value::Object(fields) => !fields.is_empty() || name == "emptyDir",
            _ => true,
        });
    } else if let Value::Array(items) = value {
        items.iter_mut().for_each(prune);
    }
}

fn container(template: &WorkerTemplate) -> Value {
    let probe = |route: &str| json!({"path": route, "port": port::ADMIN_NAME});
    json!({
        "name": WORKER_CONTAINER,
        "image": template.pod.image,
        "args": arguments(template),
        "env": environment(template),
        "envFrom": secret_environments(template),
        "ports": [
            {"name": port::API_NAME, "containerPort": port::API},
            {"name": port::ADMIN_NAME, "containerPort": port::ADMIN},
        ],
        "resources": template.resources,
        "volumeMounts": mounts(template),
        // An hour for fetching and loading; the deployment's progressDeadline tells people much earlier.
        "startupProbe": {"httpGet": probe("/readyz"), "periodSeconds": 1, "timeoutSeconds": 2, "failureThreshold": 3600},
        "readinessProbe": {"httpGet": probe("/readyz"), "periodSeconds": 2, "timeoutSeconds": 2, "failureThreshold": 2},
        "livenessProbe": {"httpGet": probe("/livez"), "periodSeconds": 10, "timeoutSeconds": 5, "failureThreshold": 3},
        "terminationMessagePath": path::TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
    })
}

/// The command line of llava-worker.
fn arguments(template: &WorkerTemplate) -> Vec<String> {
    let mut line = vec!["serve".to_owned()];
    let mut flag = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            line.push(format!("--{name}"));
            line.push(value);
        }
    };
    flag("model", location(&template.model.source, path::MODEL));
    flag(
        "base",
        template
            .model
            .base
            .as_ref()
            .and_then(|base| location(base, path::BASE_MODEL)),
    );
    flag("model-name", template.model.name.clone());
    for alias in &template.model.aliases {
        flag("model-alias", Some(alias.clone()));
    }
    flag("listen", Some(format!("0.0.0.0:{}", port::API)));
    flag("admin-listen", Some(format!("0.0.0.0:{}", port::ADMIN)));
    let native = template.engine.native.clone().unwrap_or_default();
    flag("dtype", native.dtype.map(|dtype| dtype.as_str().to_owned()));
    flag(
        "quantization",
        native.quantization.map(|format| format.as_str().to_owned()),
    );
    flag(
        "context-length",
        native.context_length.map(|tokens| tokens.to_string()),
    );
    flag(
        "max-running-requests",
        native.max_running_requests.map(|count| count.to_string()),
    );
    for host in native.allowed_image_hosts {
        flag("allow-image-host", Some(host));
    }
    flag(
        "conversation-template",
        template.model.conversation_template.clone(),
    );
    flag(
        "image-aspect-ratio",
        template.model.image_aspect_ratio.clone(),
    );
    flag(
        "max-queue-length",
        template.max_queue_length.map(|count| count.to_string()),
    );
    flag(
        "queue-timeout",
        template
            .queue_timeout_seconds
            .map(|seconds| seconds.to_string()),
    );
    flag(
        "drain-timeout",
        Some(template.drain.timeout.seconds_ceil().to_string()),
    );
    flag("cache-dir", Some(path::CACHE.to_owned()));
    line.push("--lease".to_owned());
    line.extend([
        "--termination-log".to_owned(),
        path::TERMINATION_LOG.to_owned(),
    ]);
    line
}

/// A source as the worker spells it: a URL, or where the volume is mounted.
fn location(source: &Source, mounted: &str) -> Option<String> {
    if let Some(hub) = &source.hugging_face {
        let revision = hub.revision.iter().map(|revision| format!("@{revision}"));
        return Some(format!("hf://{}{}", hub.repo, revision.collect::<String>()));
    }
    if let Some(store) = &source.object_store {
        return Some(store.url.clone());
    }
    if let Some(http) = &source.http {
        let sum = http.sha256.iter().map(|sum| format!("#sha256={sum}"));
        return Some(format!("{}{}", http.url, sum.collect::<String>()));
    }
    volume("", source).map(|_| mounted.to_owned())
}

fn environment(template: &WorkerTemplate) -> Value {
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let mut all = vec![
        field(env::POD_NAME, "metadata.name"),
        field(env::POD_NAMESPACE, "metadata.namespace"),
        field(env::POD_UID, "metadata.uid"),
    ];
    let token = sources(template)
        .filter_map(|(_, _, source)| source.hugging_face.as_ref()?.token_secret_ref.as_ref())
        .next();
    if let Some(token) = token {
        all.push(json!({
            "name": env::HF_TOKEN,
            "valueFrom": {"secretKeyRef": {"name": token.name, "key": token.key}},
        }));
    }
    all.extend(template.pod.env.iter().map(|entry| json!(entry)));
    Value::Array(all)
}

fn secret_environments(template: &WorkerTemplate) -> Vec<Value> {
    sources(template)
        .filter_map(|(_, _, source)| source.object_store.as_ref()?.secret_ref.as_ref())
        .map(|secret| json!({"secretRef": {"name": secret.name}}))
        .collect()
}

/// The sources with the names of their volumes and where these are mounted.
fn sources(
    template: &WorkerTemplate,
) -> impl Iterator<Item = (&'static str, &'static str, &Source)> {
    let base = template.model.base.as_ref();
    [("model", path::MODEL, &template.model.source)]
        .into_iter()
        .chain(base.map(|base| ("base-model", path::BASE_MODEL, base)))
}

fn volumes(template: &WorkerTemplate) -> Vec<Value> {
    let mut all: Vec<_> = sources(template)
        .filter_map(|(name, _, source)| volume(name, source))
        .collect();
    all.push(json!({"name": "cache", "emptyDir": {}}));
    all.push(json!({"name": "tmp", "emptyDir": {}}));
    all
}

/// The volume that brings a source, if one does.
fn volume(name: &str, source: &Source) -> Option<Value> {
    let mut volume = Map::new();
    volume.insert("name".into(), name.into());
    if let Some(claim) = &source.persistent_volume_claim {
        let claim = json!({"claimName": claim.claim_name, "readOnly": true});
        volume.insert("persistentVolumeClaim".into(), claim);
    } else if let Some(image) = &source.image {
        let policy = image.pull_policy.map(|policy| policy.as_str());
        let image = json!({"reference": image.reference, "pullPolicy": policy});
        volume.insert("image".into(), image);
    } else if let Some(host) = &source.host_path {
        let host = json!({"path": host.path, "type": "Directory"});
        volume.insert("hostPath".into(), host);
    } else {
        return None;
    }
    Some(Value::Object(volume))
}

fn mounts(template: &WorkerTemplate) -> Vec<Value> {
    let mut all: Vec<_> = sources(template)
        .filter(|(name, _, source)| volume(name, source).is_some())
        .map(|(name, mounted, source)| {
            let claim = source.persistent_volume_claim.as_ref().and_then(|claim| claim.path.clone());
            let image = source.image.as_ref().and_then(|image| image.path.clone());
            json!({"name": name, "mountPath": mounted, "subPath": claim.or(image), "readOnly": true})
        })
        .collect();
    all.push(json!({"name": "cache", "mountPath": path::CACHE}));
    all.push(json!({"name": "tmp", "mountPath": "/tmp"}));
    all
}

#[cfg(test)]
mod tests {
    use crds::drain::GRACE_MARGIN_SECONDS;
    use crds::name::{FIELD_MANAGER, WORKER, label};

    use super::*;

    fn worker(template: &Value) -> LlavaWorker {
        serde_json::from_value(json!({
            "apiVersion": "llava.dev/v1alpha1", "kind": "LlavaWorker",
            "metadata": {"namespace": "ns", "name": "llava-abc-0", "uid": "w"},
            "spec": {"deployment": "llava", "revision": "abc", "template": template},
        }))
        .unwrap()
    }

    fn line(template: &Value) -> String {
        let pod = pod(&worker(template)).unwrap();
        pod.spec.unwrap().containers[0]
            .args
            .clone()
            .unwrap()
            .join(" ")
    }

    #[test]
    fn the_command_line_is_the_contract_with_the_worker() {
        let template = json!({
            "model": {
                "name": "llava", "aliases": ["llava-7b"],
                "source": {"huggingFace": {"repo": "llava-hf/llava-1.5-7b-hf", "revision": "main"}},
                "base": {"persistentVolumeClaim": {"claimName": "vicuna"}},
            },
            "engine": {"native": {"dtype": "bf16", "quantization": "int4", "contextLength": 4096, "allowedImageHosts": ["a.org", "b.org"]}},
            "drain": {"timeout": "1m30s"},
            "maxQueueLength": 16,
            "queueTimeoutSeconds": 30,
        });
        assert_eq!(
            line(&template),
            "serve --model hf://llava-hf/llava-1.5-7b-hf@main --base /base-model --model-name llava --model-alias llava-7b \
             --listen 0.0.0.0:8000 --admin-listen 0.0.0.0:9090 --dtype bf16 --quantization int4 --context-length 4096 \
             --allow-image-host a.org --allow-image-host b.org --max-queue-length 16 --queue-timeout 30 --drain-timeout 90 --cache-dir /cache --lease \
             --termination-log /dev/termination-log"
        );
    }

    #[test]
    fn the_grace_period_is_longer_than_the_drain() {
        let template = json!({"model": {"source": {"http": {"url": "https://a/b"}}}, "engine": {}, "drain": {"timeout": "5m"}});
        let spec = pod(&worker(&template)).unwrap().spec.unwrap();
        let margin = i64::try_from(GRACE_MARGIN_SECONDS).unwrap();
        assert_eq!(spec.termination_grace_period_seconds, Some(300 + margin));
    }

    #[test]
    fn a_pod_is_what_pod_security_restricted_allows() {
        let template = json!({
            "model": {"source": {"image": {"reference": "models/llava:7b", "path": "llava"}}},
            "engine": {}, "drain": {"timeout": "1m"},
        });
        let spec = pod(&worker(&template)).unwrap().spec.unwrap();
        let context = spec.security_context.unwrap();
        assert_eq!(context.run_as_non_root, Some(true));
        assert_eq!(context.seccomp_profile.unwrap().type_, "RuntimeDefault");
        let container = &spec.containers[0];
        let context = container.security_context.clone().unwrap();
        assert_eq!(context.allow_privilege_escalation, Some(false));
        assert_eq!(context.read_only_root_filesystem, Some(true));
        assert_eq!(
            context.capabilities.unwrap().drop,
            Some(vec!["ALL".to_owned()])
        );
        let mount = &container.volume_mounts.as_ref().unwrap()[0];
        assert_eq!(
            (mount.mount_path.as_str(), mount.sub_path.as_deref()),
            ("/model", Some("llava"))
        );
    }

    #[test]
    fn labels_of_ours_win_over_a_users() {
        let template = json!({
            "model": {"source": {"http": {"url": "https://a/b"}}}, "engine": {}, "drain": {"timeout": "1m"},
            "labels": {"team": "vision"},
        });
        let labels = pod(&worker(&template)).unwrap().metadata.labels.unwrap();
        assert_eq!(labels["team"], "vision");
        assert_eq!(labels[label::NAME], WORKER);
        assert_eq!(labels[label::MANAGED_BY], FIELD_MANAGER);
        assert_eq!(labels[label::WORKER], "llava-abc-0");
    }
}
