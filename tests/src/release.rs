//! The chart on a control plane, where no Pod of it runs: for promises about
//! what it renders and which rights it gives.

use anyhow::Context as _;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};

use crate::cluster::Cluster;
use crate::install::root;

/// The folder of the chart.
#[must_use]
pub fn chart() -> String {
    root().join("charts/llava-operator").display().to_string()
}

/// Installs the chart as release `llava`, without waiting for Pods.
///
/// # Errors
/// With what helm said.
pub async fn install(cluster: &Cluster, namespace: &str, settings: &[&str]) -> anyhow::Result<()> {
    let chart = chart();
    let words = [
        "install",
        "llava",
        &chart,
        "--create-namespace",
        "--namespace",
        namespace,
    ];
    cluster.helm(&[&words[..], settings].concat()).await?;
    Ok(())
}

/// A token of a ServiceAccount, bound to a Pod as kubelet's are, or to none.
///
/// # Errors
/// When the API server refuses it.
pub async fn token(
    cluster: &Cluster,
    namespace: &str,
    account: &str,
    pod: Option<&Pod>,
) -> anyhow::Result<String> {
    let bound_object_ref = pod.map(|pod| BoundObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        name: Some(pod.name_any()),
        uid: pod.uid(),
    });
    let request = TokenRequest {
        spec: TokenRequestSpec {
            bound_object_ref,
            ..TokenRequestSpec::default()
        },
        ..TokenRequest::default()
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client(), namespace);
    let answer = accounts
        .create_token_request(account, &PostParams::default(), &request)
        .await?;
    Ok(answer.status.context("an answer without a token")?.token)
}
