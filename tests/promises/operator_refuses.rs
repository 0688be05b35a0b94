//! What cannot work is refused when it is applied, by the kind itself: no webhook
//! has to be up. Each message says which field is meant.

use crds::{LlavaDeployment, LlavaWorker};
use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tests::Cluster;
use tests::history::kind;

#[derive(Deserialize)]
struct Bad {
    why: String,
    field: String,
    name: Option<String>,
    #[serde(default)]
    spec: Value,
}

fn good() -> Value {
    json!({"model": {"source": {"huggingFace": {"repo": "llava-hf/llava-1.5-7b-hf"}}}})
}

/// Lays `over` upon `under`, as a merge patch does.
fn merge(under: &mut Value, over: &Value) {
    match over {
        Value::Object(fields) => {
            if !under.is_object() {
                *under = Value::Object(Map::new());
            }
            for (name, field) in fields {
                let Some(there) = under.as_object_mut() else {
                    continue;
                };
                if field.is_null() {
                    there.remove(name);
                } else {
                    merge(there.entry(name).or_insert(Value::Null), field);
                }
            }
        }
        Value::Null => {}
        other => *under = other.clone(),
    }
}

fn object(name: &str, spec: &Value) -> anyhow::Result<DynamicObject> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "llava.dev/v1alpha1", "kind": "LlavaDeployment", "metadata": {"name": name}, "spec": spec,
    }))?)
}

#[tokio::test]
async fn what_cannot_work_is_refused_with_the_field_in_the_message() -> anyhow::Result<()> {
    let cluster = Cluster::control_plane().with_kinds().await?;
    let api: Api<DynamicObject> =
        Api::default_namespaced_with(cluster.client(), &kind::<LlavaDeployment>());
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let bad: Vec<Bad> = serde_saphyr::from_str(include_str!("../fixtures/refused.yaml"))?;
    assert!(bad.len() >= 40);
    let mut wrong = Vec::new();
    for bad in &bad {
        let mut spec = good();
        merge(&mut spec, &bad.spec);
        let object = object(bad.name.as_deref().unwrap_or("llava"), &spec)?;
        match api.create(&dry, &object).await {
            Ok(_) => wrong.push(format!("{}: taken", bad.why)),
            Err(kube::Error::Api(status)) if status.message.contains(&bad.field) => {}
            Err(error) => wrong.push(format!("{}: {error}", bad.why)),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[tokio::test]
async fn every_field_at_its_best_is_taken() -> anyhow::Result<()> {
    let cluster = Cluster::control_plane().with_kinds().await?;
    let api: Api<DynamicObject> =
        Api::default_namespaced_with(cluster.client(), &kind::<LlavaDeployment>());
    let full = json!({
        "model": {
            "name": "liuhaotian/llava-v1.5-7b", "aliases": ["llava", "llava:7b"],
            "base": {"persistentVolumeClaim": {"claimName": "vicuna", "path": "7b"}},
            "conversationTemplate": "vicuna_v1", "imageAspectRatio": "anyres_max_9",
        },
        "engine": {"native": {"dtype": "bf16", "quantization": "int4", "contextLength": 4096, "maxRunningRequests": 8,
            "allowedImageHosts": ["images.example.com"]}},
        "accelerator": {"product": "NVIDIA-L4"},
        "resources": {"requests": {"cpu": 2, "memory": "8Gi"}, "limits": {"memory": "16Gi", "cpu": "2000m"}},
        "autoscaling": {"minReplicas": 0, "maxReplicas": 4, "idleTimeout": "5m"},
        "rollout": {"maxSurge": "25%", "maxUnavailable": 1, "progressDeadline": "1h", "paused": true},
        "drain": {"timeout": "1h"},
        "routing": {"policy": "Lottery", "maxQueueLength": 0, "queueTimeout": "30s"},
        "labels": {"team": "vision", "example.com/tier": "gold"}, "annotations": {"a": "b c"},
        "env": [{"name": "RUST_LOG", "value": "debug"}],
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 1, "podAffinityTerm": {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"a": "b"}}}}]}},
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
    });
    for over in [json!({}), full, json!({"replicas": 0})] {
        let mut spec = good();
        merge(&mut spec, &over);
        api.create(
            &PostParams {
                dry_run: true,
                ..PostParams::default()
            },
            &object("llava", &spec)?,
        )
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_workers_spec_cannot_change() -> anyhow::Result<()> {
    let cluster = Cluster::control_plane().with_kinds().await?;
    let api: Api<LlavaWorker> = Api::default_namespaced(cluster.client());
    let mut template = good();
    merge(
        &mut template,
        &json!({"engine": {"native": {}}, "drain": {"timeout": "1m"}}),
    );
    let worker = serde_json::from_value(json!({
        "apiVersion": "llava.dev/v1alpha1", "kind": "LlavaWorker", "metadata": {"name": "llava-abc-0"},
        "spec": {"deployment": "llava", "revision": "abc", "template": template},
    }))?;
    api.create(&PostParams::default(), &worker).await?;
    let change = Patch::Merge(json!({"spec": {"template": {"image": "another"}}}));
    let refused = api
        .patch("llava-abc-0", &PatchParams::default(), &change)
        .await;
    let message = refused
        .err()
        .map(|error| error.to_string())
        .unwrap_or_default();
    assert!(message.contains("change the LlavaDeployment"), "{message}");
    Ok(())
}
