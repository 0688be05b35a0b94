//! The operator inside a test's own process: it can be watched write by write,
//! killed between any two of them, and started anew.

use std::time::Duration;

use crds::definition::definitions;
use crds::{LlavaDeployment, LlavaDeploymentStatus};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use llava_operator::metrics::Metrics;
use llava_operator::run::run;
use llava_operator::settings::Settings;
use llava_operator::world::Scope;
use prometheus_client::registry::Registry;
use shell::readiness::Readiness;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, wait_for};
use crate::fault::Faults;

/// The image that workers get by default.
pub const WORKER_IMAGE: &str = "llava-worker:test";

/// A running operator, which dies with the value.
#[derive(Debug)]
pub struct Operator {
    task: JoinHandle<()>,
    /// What it did and what befalls it.
    pub faults: Faults,
}

impl Operator {
    /// Starts one that serves a namespace, or all of them.
    ///
    /// # Errors
    /// When the cluster cannot be reached.
    pub async fn start(
        cluster: &Cluster,
        namespace: Option<&str>,
        faults: Faults,
    ) -> anyhow::Result<Self> {
        let client = cluster.client_with(&faults).await?;
        let task = tokio::spawn(serve(client, settings(namespace)));
        Ok(Self { task, faults })
    }

    /// Ends it at once, wherever it is.
    pub async fn kill(self) {
        self.task.abort();
        // Nothing of it may still be running when the next one starts.
        let _ = self.task.await;
    }
}

async fn serve(client: Client, settings: Settings) {
    let metrics = Metrics::register(&mut Registry::default());
    let readiness = Readiness::default();
    let ended = run(
        client,
        settings,
        None,
        &readiness,
        metrics,
        CancellationToken::new(),
    );
    if let Err(error) = ended.await {
        tracing::error!(%error, "the operator ended");
    }
}

fn settings(namespace: Option<&str>) -> Settings {
    Settings {
        scope: namespace.map_or(Scope::Cluster, |namespace| {
            Scope::Namespace(namespace.to_owned())
        }),
        router_namespace: namespace.unwrap_or("default").to_owned(),
        url: None,
        worker_image: Some(WORKER_IMAGE.to_owned()),
        allow_host_path: false,
        surge_patience: Duration::from_secs(2),
        call_timeout: Duration::from_secs(10),
        concurrency: 8,
    }
}

/// Installs both kinds and waits until the API server serves them.
///
/// # Errors
/// When the API server refuses them.
pub async fn install_kinds(client: &Client) -> anyhow::Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in definitions() {
        let name = definition.name_any();
        let params = PatchParams::apply("tests").force();
        api.patch(&name, &params, &Patch::Apply(&definition))
            .await?;
        let established = async || {
            let conditions = api.get(&name).await.ok()?.status?.conditions?;
            let is = |kind: &str| {
                conditions
                    .iter()
                    .any(|one| one.type_ == kind && one.status == "True")
            };
            is("Established").then_some(())
        };
        wait_for(
            "the kind to be served",
            Duration::from_secs(20),
            established,
        )
        .await?;
    }
    Ok(())
}

/// A deployment that fake nodes can serve.
///
/// # Errors
/// When `spec` does not fit the kind.
pub fn deployment(name: &str, spec: serde_json::Value) -> anyhow::Result<LlavaDeployment> {
    let mut whole = serde_json::json!({
        "model": {"source": {"huggingFace": {"repo": "llava-hf/llava-1.5-7b-hf"}}},
        "drain": {"timeout": "1s"},
    });
    if let (Some(whole), serde_json::Value::Object(spec)) = (whole.as_object_mut(), spec) {
        whole.extend(spec);
    }
    Ok(serde_json::from_value(serde_json::json!({
        "apiVersion": "llava.dev/v1alpha1", "kind": "LlavaDeployment", "metadata": {"name": name}, "spec": whole,
    }))?)
}

/// Waits until a deployment's status is as asked.
///
/// # Errors
/// With the last status, when it is not in time.
pub async fn wait_status(
    client: &Client,
    namespace: &str,
    name: &str,
    good: impl Fn(&LlavaDeploymentStatus) -> bool,
) -> anyhow::Result<LlavaDeploymentStatus> {
    let api: Api<LlavaDeployment> = Api::namespaced(client.clone(), namespace);
    let last = std::sync::Mutex::new(None);
    let probe = async || {
        let found = api.get(name).await.ok()?;
        let current = found.metadata.generation;
        let status = found.status?;
        let done = status.observed_generation == current && good(&status);
        if let Ok(mut last) = last.lock() {
            *last = Some(status.clone());
        }
        done.then_some(status)
    };
    let what = format!("LlavaDeployment {name} to be as it should");
    let found = wait_for(&what, Duration::from_secs(40), probe).await;
    found.map_err(|error| {
        let last = last.lock().ok().and_then(|last| last.clone());
        anyhow::Error::new(error).context(format!("{last:#?}"))
    })
}
