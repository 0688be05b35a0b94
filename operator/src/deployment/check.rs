//! From what a user wrote to checked values, or the condition that says why not
//! (pure). Most mistakes never come this far: the CRD refuses them.

use crds::LlavaDeployment;
use crds::autoscaling::Autoscaling;
use crds::condition::reason;
use crds::name::child_name;
use crds::resources::{NVIDIA_GPU, NVIDIA_GPU_PRODUCT, Resources};
use crds::worker::WorkerTemplate;
use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::time::Duration;

use crate::revision::revision;
use crate::settings::Settings;

/// How many workers are wished for.
#[derive(Clone, Debug, PartialEq)]
pub enum Wish {
    /// This many; by hand or by a HorizontalPodAutoscaler.
    Fixed(usize),
    /// As many as the load asks for.
    Auto(Autoscaling),
}

/// A deployment that can be worked with.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// What each worker is.
    pub template: WorkerTemplate,
    /// Its hash.
    pub revision: String,
    /// How many.
    pub wish: Wish,
    /// Workers above the wish during a rollout.
    pub max_surge: IntOrString,
    /// Workers below the wish during a rollout.
    pub max_unavailable: IntOrString,
    /// How long a rollout may stand still.
    pub progress_deadline: Duration,
    /// Whether the rollout is held.
    pub paused: bool,
    /// Whether the operator makes the ServiceAccount.
    pub own_account: bool,
}

/// Why a deployment cannot be worked with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// One word.
    pub reason: &'static str,
    /// What to do about it.
    pub message: String,
}

/// Checks.
///
/// # Errors
/// With the reason and what to do about it.
pub fn check(deployment: &LlavaDeployment, settings: &Settings) -> Result<Checked, Refusal> {
    let spec = &deployment.spec;
    let sources = std::iter::once(&spec.model.source).chain(&spec.model.base);
    if !settings.allow_host_path && sources.into_iter().any(|source| source.host_path.is_some()) {
        return Err(Refusal {
            reason: reason::HOST_PATH_NOT_ALLOWED,
            message: "spec.model has a hostPath source, which this operator refuses; use another source, or start the operator with --allow-host-path".to_owned(),
        });
    }
    let template = template(deployment, settings)?;
    let revision = revision(&template).map_err(|error| Refusal {
        reason: reason::INVALID_SPEC,
        message: format!("spec cannot be written as JSON: {error}"),
    })?;
    let wish = match (&spec.autoscaling, spec.replicas) {
        (Some(autoscaling), _) => Wish::Auto(autoscaling.clone()),
        (None, replicas) => Wish::Fixed(usize::try_from(replicas.unwrap_or(1)).unwrap_or_default()),
    };
    Ok(Checked {
        template,
        revision,
        wish,
        max_surge: spec.rollout.max_surge.clone(),
        max_unavailable: spec.rollout.max_unavailable.clone(),
        progress_deadline: spec.rollout.progress_deadline.get(),
        paused: spec.rollout.paused,
        own_account: spec.pod.service_account_name.is_none(),
    })
}

/// A worker with every default applied.
fn template(deployment: &LlavaDeployment, settings: &Settings) -> Result<WorkerTemplate, Refusal> {
    let spec = &deployment.spec;
    let name = deployment.metadata.name.clone().unwrap_or_default();
    let mut pod = spec.pod.clone();
    pod.image = pod.image.or_else(|| settings.worker_image.clone());
    if pod.image.is_none() {
        return Err(Refusal {
            reason: reason::NO_WORKER_IMAGE,
            message: "spec.image is not set and the operator has no default; set spec.image, or start the operator with --worker-image".to_owned(),
        });
    }
    pod.service_account_name = pod.service_account_name.or_else(|| Some(child_name(&name)));
    let mut resources = spec.resources.clone();
    if let Some(accelerator) = &spec.accelerator {
        let limits = &mut resources.get_or_insert_with(Resources::default).limits;
        limits.insert(
            accelerator.resource.clone(),
            Quantity(accelerator.count.to_string()),
        );
        if let Some(product) = &accelerator.product {
            let key = if accelerator.resource == NVIDIA_GPU {
                NVIDIA_GPU_PRODUCT.to_owned()
            } else {
                format!("{}.product", accelerator.resource)
            };
            pod.node_selector.insert(key, product.clone());
        }
        // GPU nodes are usually tainted with the name of their resource.
        pod.tolerations.push(Toleration {
            key: Some(accelerator.resource.clone()),
            operator: Some("Exists".to_owned()),
            effect: Some("NoSchedule".to_owned()),
            ..Toleration::default()
        });
    }
    let mut model = spec.model.clone();
    model.name = model.name.or(Some(name));
    let seconds = spec
        .routing
        .queue_timeout
        .map(crds::duration::Duration::seconds_ceil);
    Ok(WorkerTemplate {
        model,
        engine: spec.engine.clone(),
        resources,
        drain: spec.drain.clone(),
        max_queue_length: spec.routing.max_queue_length,
        queue_timeout_seconds: seconds.and_then(|seconds| i64::try_from(seconds).ok()),
        pod,
    })
}

/// A number or percentage of `whole`; a percentage is rounded as asked.
#[must_use]
pub fn share(value: &IntOrString, whole: usize, up: bool) -> usize {
    match value {
        IntOrString::Int(number) => usize::try_from(*number).unwrap_or_default(),
        IntOrString::String(text) => {
            let percent: usize = text.trim_end_matches('%').parse().unwrap_or_default();
            let product = whole.saturating_mul(percent);
            if up {
                product.div_ceil(100)
            } else {
                product / 100
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::world::Scope;

    pub(crate) fn settings() -> Settings {
        Settings {
            scope: Scope::Cluster,
            router_namespace: "llava-system".into(),
            url: Some("http://llava-router.llava-system.svc".into()),
            worker_image: Some("llava-worker:1".into()),
            allow_host_path: false,
            worker_network_policy: None,
            surge_patience: Duration::from_secs(10),
            call_timeout: Duration::from_secs(10),
            concurrency: 4,
        }
    }

    pub(crate) fn deployment(spec: &Value) -> LlavaDeployment {
        serde_json::from_value(json!({
            "apiVersion": "llava.dev/v1alpha1", "kind": "LlavaDeployment",
            "metadata": {"namespace": "ns", "name": "llava", "uid": "d", "generation": 1},
            "spec": spec,
        }))
        .unwrap()
    }

    fn source() -> Value {
        json!({"http": {"url": "https://models.example/llava.tar"}})
    }

    #[test]
    fn a_minimal_spec_is_one_worker_named_after_the_object() {
        let checked = check(
            &deployment(&json!({"model": {"source": source()}})),
            &settings(),
        )
        .unwrap();
        assert_eq!(checked.wish, Wish::Fixed(1));
        assert_eq!(checked.template.model.name.as_deref(), Some("llava"));
        assert_eq!(
            checked.template.pod.service_account_name.as_deref(),
            Some("llava-workers")
        );
        assert!(checked.own_account);
    }

    #[test]
    fn host_paths_need_the_operators_consent() {
        let spec = json!({"model": {"source": {"hostPath": {"path": "/models"}}}});
        let refusal = check(&deployment(&spec), &settings()).unwrap_err();
        assert_eq!(refusal.reason, reason::HOST_PATH_NOT_ALLOWED);
        let generous = Settings {
            allow_host_path: true,
            ..settings()
        };
        assert!(check(&deployment(&spec), &generous).is_ok());
    }

    #[test]
    fn an_accelerator_is_a_limit_a_selector_and_a_toleration() {
        let spec = json!({"model": {"source": source()}, "accelerator": {"count": 2, "product": "NVIDIA-L4"}});
        let template = check(&deployment(&spec), &settings()).unwrap().template;
        assert_eq!(template.resources.unwrap().limits[NVIDIA_GPU].0, "2");
        assert_eq!(template.pod.node_selector[NVIDIA_GPU_PRODUCT], "NVIDIA-L4");
        assert_eq!(template.pod.tolerations[0].key.as_deref(), Some(NVIDIA_GPU));
    }

    #[test]
    fn what_does_not_shape_the_pod_restarts_nobody() {
        let of = |spec: Value| check(&deployment(&spec), &settings()).unwrap().revision;
        let plain = of(json!({"model": {"source": source()}}));
        for spec in [
            json!({"model": {"source": source()}, "replicas": 7}),
            json!({"model": {"source": source()}, "autoscaling": {"maxReplicas": 3}}),
            json!({"model": {"source": source()}, "rollout": {"maxSurge": "50%", "paused": true}}),
            json!({"model": {"source": source()}, "routing": {"policy": "Lottery"}}),
            json!({"model": {"source": source()}, "engine": {"native": {}}, "drain": {"timeout": "60s"}}),
        ] {
            assert_eq!(of(spec.clone()), plain, "{spec}");
        }
        assert_ne!(
            of(json!({"model": {"source": source()}, "engine": {"native": {"dtype": "f16"}}})),
            plain
        );
    }

    #[test]
    fn another_release_rolls_those_that_name_no_image_and_naming_the_same_changes_nothing() {
        let of = |spec: Value, image: &str| {
            let settings = Settings {
                worker_image: Some(image.to_owned()),
                ..settings()
            };
            check(&deployment(&spec), &settings).unwrap().revision
        };
        let plain = json!({"model": {"source": source()}});
        let named = json!({"model": {"source": source()}, "image": "llava-worker:1"});
        let before = of(plain.clone(), "llava-worker:1");
        assert_ne!(of(plain, "llava-worker:2"), before);
        assert_eq!(of(named.clone(), "llava-worker:1"), before);
        assert_eq!(of(named, "llava-worker:2"), before);
    }

    #[test]
    fn percentages_round_as_kubernetes_does() {
        let quarter = IntOrString::String("25%".into());
        assert_eq!(
            (share(&quarter, 3, true), share(&quarter, 3, false)),
            (1, 0)
        );
        assert_eq!(share(&IntOrString::Int(2), 3, true), 2);
    }
}
