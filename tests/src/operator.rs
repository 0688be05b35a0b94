//! The operator inside a test's own process: it can be watched write by write,
//! killed between any two of them, and started anew.

use std::collections::BTreeSet;
use std::time::Duration;

use crds::name::label;
use crds::{LlavaDeployment, LlavaDeploymentStatus};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use llava_operator::metrics::Metrics;
use llava_operator::run::{Candidate, run};
use llava_operator::settings::Settings;
use llava_operator::world::Scope;
use prometheus_client::registry::Registry;
use shell::readiness::Readiness;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, wait_for};
use crate::fault::Faults;
use crate::history::{History, kind};

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
        Self::with(cluster, settings(namespace), None, faults).await
    }

    /// Starts one with these settings, and with an election if it is a candidate.
    ///
    /// # Errors
    /// When the cluster cannot be reached.
    pub async fn with(
        cluster: &Cluster,
        settings: Settings,
        candidate: Option<Candidate>,
        faults: Faults,
    ) -> anyhow::Result<Self> {
        let client = cluster.client_with(&faults).await?;
        let task = tokio::spawn(serve(client, settings, candidate));
        Ok(Self { task, faults })
    }

    /// Ends it at once, wherever it is.
    pub async fn kill(self) {
        self.task.abort();
        // Nothing of it may still be running when the next one starts.
        let _ = self.task.await;
    }
}

async fn serve(client: Client, settings: Settings, candidate: Option<Candidate>) {
    let metrics = Metrics::register(&mut Registry::default());
    let readiness = Readiness::default();
    let ended = run(
        client,
        settings,
        candidate,
        &readiness,
        metrics,
        CancellationToken::new(),
    );
    if let Err(error) = ended.await {
        tracing::error!(%error, "the operator ended");
    }
}

/// What an operator of the tests is told: little patience, and one image.
#[must_use]
pub fn settings(namespace: Option<&str>) -> Settings {
    Settings {
        scope: namespace.map_or(Scope::Cluster, |namespace| {
            Scope::Namespace(namespace.to_owned())
        }),
        router_namespace: namespace.unwrap_or("default").to_owned(),
        url: None,
        worker_image: Some(WORKER_IMAGE.to_owned()),
        allow_host_path: false,
        worker_network_policy: None,
        surge_patience: Duration::from_secs(2),
        call_timeout: Duration::from_secs(10),
        concurrency: 8,
    }
}

/// A cluster of fake nodes with both kinds and an operator for all namespaces.
#[derive(Debug)]
pub struct Scene {
    /// The cluster.
    pub cluster: Cluster,
    /// The operator.
    pub operator: Operator,
}

impl Scene {
    /// Starts it with so many nodes of eight GPUs each.
    ///
    /// # Errors
    /// When the cluster does not come up.
    pub async fn start(nodes: u16) -> anyhow::Result<Self> {
        let cluster = Cluster::control_plane()
            .with_kinds()
            .with_fake_nodes(nodes)
            .await?;
        let operator = Operator::start(&cluster, None, Faults::none()).await?;
        Ok(Self { cluster, operator })
    }

    /// Objects of the default namespace.
    #[must_use]
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::default_namespaced(self.cluster.client())
    }

    /// Creates a LlavaDeployment.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn create(&self, name: &str, spec: serde_json::Value) -> anyhow::Result<()> {
        let api = self.api::<LlavaDeployment>();
        api.create(&PostParams::default(), &deployment(name, spec)?)
            .await?;
        Ok(())
    }

    /// Creates a LlavaDeployment and waits until its workers answer.
    ///
    /// # Errors
    /// When it is refused or does not come up.
    pub async fn serve(&self, name: &str, spec: serde_json::Value) -> anyhow::Result<()> {
        self.create(name, spec).await?;
        let all = |status: &LlavaDeploymentStatus| {
            status.available_replicas == status.desired_replicas
                && status.summary.as_deref() == Some("Ready")
        };
        self.wait(name, all).await?;
        Ok(())
    }

    /// Changes a LlavaDeployment's spec by a merge patch.
    ///
    /// # Errors
    /// When the change is refused.
    pub async fn change(&self, name: &str, spec: serde_json::Value) -> anyhow::Result<()> {
        let patch = Patch::Merge(serde_json::json!({"spec": spec}));
        self.api::<LlavaDeployment>()
            .patch(name, &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }

    /// Waits until a deployment's status is as asked.
    ///
    /// # Errors
    /// With the last status, when it is not in time.
    pub async fn wait(
        &self,
        name: &str,
        good: impl Fn(&LlavaDeploymentStatus) -> bool,
    ) -> anyhow::Result<LlavaDeploymentStatus> {
        wait_status(&self.cluster.client(), "default", name, good).await
    }

    /// The Pods of a deployment's workers, by name.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn pods(&self, deployment: &str) -> anyhow::Result<Vec<Pod>> {
        let selector = format!("{}={deployment}", label::DEPLOYMENT);
        let all = ListParams::default().labels(&selector);
        Ok(self.api::<Pod>().list(&all).await?.items)
    }

    /// The UIDs of those.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn pod_uids(&self, deployment: &str) -> anyhow::Result<BTreeSet<Option<String>>> {
        Ok(self
            .pods(deployment)
            .await?
            .iter()
            .map(ResourceExt::uid)
            .collect())
    }

    /// The history of the Pods of the default namespace from now on. What the operator
    /// asked for tells less: it asks again for a Pod when no answer came.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn record_pods(&self) -> anyhow::Result<History> {
        History::record(&self.cluster.client(), "default", &[kind::<Pod>()]).await
    }

    /// Reasons of the Events about objects of a kind, in no order.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn events(&self, kind: &str) -> anyhow::Result<Vec<String>> {
        let events: Api<Event> = self.api();
        let all = events.list(&ListParams::default()).await?;
        let about = |event: &Event| {
            let about = event.regarding.as_ref()?.kind.as_deref()?;
            (about == kind).then(|| event.reason.clone()).flatten()
        };
        Ok(all.iter().filter_map(about).collect())
    }
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
