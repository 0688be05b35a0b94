//! The whole system on a cluster of its own: images loaded, chart installed, as
//! a user would, and the few things that promises do with it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use crds::LlavaDeployment;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};

use crate::ask::Asker;
use crate::cluster::{Cluster, run, wait_for};

/// Where the release and, unless a promise says otherwise, the models live.
pub const NAMESPACE: &str = "llava";
const RELEASE: &str = "llava";
const MANAGER: &str = "promises";
/// How long a step may take on a busy machine before a promise counts as broken.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A cluster with a release of the chart.
#[derive(Debug)]
pub struct Installed {
    cluster: Cluster,
}

impl Installed {
    /// Starts a real node, loads the images and installs the chart.
    ///
    /// # Errors
    /// When a step fails; `make images` makes the images.
    pub async fn start() -> anyhow::Result<Self> {
        Self::with(&[]).await
    }

    /// As [`start`](Self::start), with values such as `router.replicas=2`.
    ///
    /// # Errors
    /// When a step fails.
    pub async fn with(values: &[&str]) -> anyhow::Result<Self> {
        let cluster = loaded_cluster().await?;
        let installed = Self { cluster };
        installed.enforce_restricted_pods().await?;
        installed.helm("install", values).await?;
        Ok(installed)
    }

    /// `helm install` or `helm upgrade` of this project's chart.
    ///
    /// # Errors
    /// With what helm said.
    pub async fn helm(&self, verb: &str, values: &[&str]) -> anyhow::Result<String> {
        let chart = root().join("charts/llava-operator");
        let chart = chart.to_string_lossy();
        let mut words = vec![verb, RELEASE, &*chart, "--namespace", NAMESPACE, "--wait"];
        words.extend(["--timeout", "3m"]);
        for value in [
            "image.pullPolicy=Never",
            "operator.replicas=1",
            "router.replicas=1",
        ] {
            words.extend(["--set", value]);
        }
        for value in values {
            words.extend(["--set", value]);
        }
        Ok(self.cluster.helm(&words).await?)
    }

    /// `helm uninstall`.
    ///
    /// # Errors
    /// With what helm said.
    pub async fn uninstall(&self) -> anyhow::Result<String> {
        let words = ["uninstall", RELEASE, "--namespace", NAMESPACE, "--wait"];
        Ok(self.cluster.helm(&words).await?)
    }

    /// The cluster itself.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// A client with every right.
    #[must_use]
    pub fn client(&self) -> Client {
        self.cluster.client()
    }

    /// An API handle in the namespace of the models.
    #[must_use]
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client(), NAMESPACE)
    }

    /// Runs kubectl in the namespace of the models.
    ///
    /// # Errors
    /// With what kubectl said.
    pub async fn kubectl(&self, words: &[&str]) -> anyhow::Result<String> {
        let words: Vec<&str> = ["--namespace", NAMESPACE]
            .iter()
            .chain(words)
            .copied()
            .collect();
        Ok(self.cluster.kubectl(&words).await?)
    }

    /// Applies a LlavaDeployment, as `kubectl apply --server-side` does.
    ///
    /// # Errors
    /// When the API server refuses it.
    pub async fn apply(&self, deployment: &LlavaDeployment) -> anyhow::Result<LlavaDeployment> {
        let params = PatchParams::apply(MANAGER).force();
        let name = deployment.name_any();
        Ok(self
            .api()
            .patch(&name, &params, &Patch::Apply(deployment))
            .await?)
    }

    /// Waits until so many workers are Ready by the deployment's own word.
    ///
    /// # Errors
    /// When that does not come true in time; says how it stands instead.
    pub async fn wait_ready(&self, name: &str, workers: i32) -> anyhow::Result<()> {
        let what = format!("{workers} ready workers of {name}");
        let ready = wait_for(&what, PATIENCE, async || {
            let deployment = self.api::<LlavaDeployment>().get(name).await.ok()?;
            let observed = deployment.status.clone()?;
            let settled = observed.observed_generation == deployment.metadata.generation
                && observed.ready_replicas == workers
                && observed.updated_replicas == workers
                && observed.replicas == workers;
            settled.then_some(())
        });
        if let Err(error) = ready.await {
            let state = self.kubectl(&["get", "lld,llw,pods", "-o", "wide"]).await?;
            anyhow::bail!("{error}; the state is\n{state}");
        }
        Ok(())
    }

    /// Waits until exactly so many worker Pods of a deployment live.
    ///
    /// # Errors
    /// When that does not come true in time.
    pub async fn wait_workers(&self, name: &str, workers: usize) -> anyhow::Result<()> {
        let what = format!("{workers} live workers of {name}");
        let live = wait_for(&what, PATIENCE, async || {
            (self.workers(name).await.ok()?.len() == workers).then_some(())
        });
        Ok(live.await?)
    }

    /// The worker Pods of a deployment that are not on their way out.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn workers(&self, name: &str) -> anyhow::Result<Vec<Pod>> {
        let selector = format!("{}={name}", crds::name::label::DEPLOYMENT);
        let pods = self
            .api::<Pod>()
            .list(&ListParams::default().labels(&selector))
            .await?;
        let live = |pod: &Pod| pod.metadata.deletion_timestamp.is_none();
        Ok(pods.items.into_iter().filter(live).collect())
    }

    /// The identities of those Pods.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn worker_uids(&self, name: &str) -> anyhow::Result<BTreeSet<String>> {
        Ok(self
            .workers(name)
            .await?
            .iter()
            .filter_map(Pod::uid)
            .collect())
    }

    /// Ends the process of a Pod at once, as a crash would.
    ///
    /// # Errors
    /// When no process of this Pod runs.
    pub async fn kill(&self, pod: &str) -> anyhow::Result<()> {
        self.signal(pod, "KILL").await
    }

    /// Sends the process of a Pod a signal: `STOP` hangs it, `CONT` lets it go on.
    ///
    /// # Errors
    /// When no process of this Pod runs.
    pub async fn signal(&self, pod: &str, signal: &str) -> anyhow::Result<()> {
        // Every container runs in the cluster's PID namespace, where a process
        // is known by the name that the downward API gave it.
        let script = format!(
            "found=$(grep -lzxF POD_NAME={pod} /proc/[0-9]*/environ 2>/dev/null | cut -d / -f 3)
             kill -s {signal} $found"
        );
        run(self.cluster.inside("sh").args(["-c", &script])).await?;
        Ok(())
    }

    /// Asks through the router's Service.
    ///
    /// # Errors
    /// When the Service has no address.
    pub async fn asker(&self) -> anyhow::Result<Asker> {
        let service = self.api::<Service>().get("llava-router").await?;
        let spec = service.spec.unwrap_or_default();
        let address = spec
            .cluster_ip
            .context("the router's Service has no address")?;
        Ok(Asker::new(format!("http://{address}"))?)
    }

    /// Requests that the routers hold because no worker may take them yet.
    ///
    /// # Errors
    /// When an admin port does not answer.
    pub async fn waiting(&self) -> anyhow::Result<usize> {
        let routers = ListParams::default().labels("app.kubernetes.io/name=llava-router");
        let mut waiting = 0;
        for pod in self.api::<Pod>().list(&routers).await? {
            let address = pod.status.and_then(|status| status.pod_ip);
            let address = address.context("a router without an address")?;
            let shown = reqwest::get(format!("http://{address}:9090/metrics")).await?;
            let shown = shown.error_for_status()?.text().await?;
            let lines = shown.lines();
            let series = lines.filter(|line| line.starts_with("llava_router_waiting{"));
            let figures = series.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            waiting += figures.sum::<f64>() as usize;
        }
        Ok(waiting)
    }

    async fn enforce_restricted_pods(&self) -> anyhow::Result<()> {
        let namespace: Namespace = serde_json::from_value(serde_json::json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
        }))?;
        let namespaces: Api<Namespace> = Api::all(self.client());
        let params = PatchParams::apply(MANAGER).force();
        namespaces
            .patch(NAMESPACE, &params, &Patch::Apply(&namespace))
            .await?;
        Ok(())
    }
}

/// A real node that holds the images, and nothing else.
///
/// # Errors
/// When a step fails; `make images` makes the images.
pub async fn loaded_cluster() -> anyhow::Result<Cluster> {
    shell::tls::install_provider();
    let cluster = Cluster::control_plane().with_real_node().await?;
    for image in [
        "llava-operator",
        "llava-router",
        "llava-worker",
        "llava-shapes",
    ] {
        let archive = images().join(format!("{image}.tar"));
        cluster
            .load_image(&archive)
            .await
            .with_context(|| format!("loading {image}"))?;
    }
    Ok(cluster)
}

/// A LlavaDeployment of the project's own model, `llava-shapes`, as examples/ has it.
///
/// # Errors
/// When the example does not parse.
pub fn llava_shapes() -> anyhow::Result<LlavaDeployment> {
    let text = std::fs::read_to_string(root().join("examples/llava-deployment.yaml"))?;
    Ok(serde_saphyr::from_str(&text)?)
}

/// An image of examples/.
///
/// # Errors
/// When there is none of this name.
pub fn example_image(name: &str) -> anyhow::Result<Vec<u8>> {
    let path = root().join("examples/images").join(name);
    std::fs::read(&path).with_context(|| format!("reading {}", path.display()))
}

/// The folder of the sources.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Where `make images` puts the archives, and in `context` what is in them.
#[must_use]
pub fn images() -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    target.join("images")
}
