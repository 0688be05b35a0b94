//! Nodes without containers, whose kubelets kwok plays.

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;

use super::error::Error;

/// The name of the fake node with this number.
#[must_use]
pub fn node_name(number: u16) -> String {
    format!("fake-{number}")
}

/// Makes a fake node: 32 processors, 256 GiB, 8 GPUs.
pub(super) async fn create_node(nodes: &Api<Node>, number: u16) -> Result<(), Error> {
    let name = node_name(number);
    let resources = json!({
        "cpu": "32", "memory": "256Gi", "pods": "250", "ephemeral-storage": "1Ti", "nvidia.com/gpu": "8",
    });
    let node = json!({
        "metadata": {
            "name": name,
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"},
        },
        "status": {"capacity": resources, "allocatable": resources},
    });
    let what = format!("create the fake node {name}");
    let node = serde_json::from_value(node)
        .map_err(|error| Error::Supervisor(format!("{what}: {error}")))?;
    nodes
        .create(&PostParams::default(), &node)
        .await
        .map_err(Error::api(what))?;
    Ok(())
}

/// Loses a fake node: it and its Pods look as they do when a node has been silent
/// for long, and no Pod on it can end.
pub(super) async fn lose_node(client: &Client, name: &str) -> Result<(), Error> {
    let lost = || Error::api(format!("lose the node {name}"));
    let nodes: Api<Node> = Api::all(client.clone());
    let label = json!({"metadata": {"labels": {"fake.llava.dev/lost": "true"}}});
    let how = PatchParams::default();
    nodes
        .patch(name, &how, &Patch::Merge(label))
        .await
        .map_err(lost())?;
    let pods: Api<Pod> = Api::all(client.clone());
    let there = ListParams::default().fields(&format!("spec.nodeName={name}"));
    for pod in pods.list(&there).await.map_err(lost())? {
        let namespace = pod.namespace().unwrap_or_default();
        let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
        let fault = json!({"metadata": {"annotations": {"fake.llava.dev/fault": "node-lost"}}});
        pods.patch(&pod.name_any(), &how, &Patch::Merge(fault))
            .await
            .map_err(lost())?;
    }
    Ok(())
}
