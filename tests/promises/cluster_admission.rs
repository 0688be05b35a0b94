//! What the API server refuses: Pods that break the restricted standard, and
//! writes of a worker to a Lease that is not its own.

use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tests::{Cluster, cluster::Error};

const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/llava-operator");

fn refusal(result: Result<String, Error>) -> String {
    match result {
        Ok(said) => panic!("it was taken: {said}"),
        Err(error) => error.to_string(),
    }
}

fn pod(name: &str, security: &serde_json::Value) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "guarded"},
        // The namespace's default account comes a moment after the namespace.
        "spec": {
            "serviceAccountName": "ready",
            "containers": [{"name": "worker", "image": "worker", "securityContext": security}],
        },
    })
    .to_string()
}

#[tokio::test]
async fn the_restricted_standard_refuses_a_pod_that_may_become_root() -> anyhow::Result<()> {
    let cluster = Cluster::control_plane().await?;
    cluster.kubectl(&["create", "namespace", "guarded"]).await?;
    cluster
        .kubectl(&[
            "label",
            "namespace",
            "guarded",
            "pod-security.kubernetes.io/enforce=restricted",
        ])
        .await?;
    cluster
        .kubectl(&["create", "serviceaccount", "--namespace=guarded", "ready"])
        .await?;

    let refused = refusal(
        cluster
            .apply(&pod("bad", &json!({"privileged": true})))
            .await,
    );
    for rule in [
        "privileged",
        "runAsNonRoot",
        "unrestricted capabilities",
        "seccompProfile",
    ] {
        assert!(refused.contains(rule), "{refused}");
    }
    let good = json!({
        "runAsNonRoot": true,
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    cluster.apply(&pod("good", &good)).await?;
    Ok(())
}

/// What a worker does every five seconds.
async fn renew(client: &Client, lease: &str) -> Result<Lease, kube::Error> {
    let leases: Api<Lease> = Api::default_namespaced(client.clone());
    let patch = Patch::Merge(json!({"spec": {"holderIdentity": "me"}}));
    leases.patch(lease, &PatchParams::default(), &patch).await
}

fn forbidden(result: Result<Lease, kube::Error>) -> String {
    match result {
        Err(kube::Error::Api(status)) if status.code == 403 => status.message,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_pods_token_may_write_only_the_lease_of_its_pod() -> anyhow::Result<()> {
    let cluster = Cluster::control_plane().await?;
    let policy = [
        "template",
        "llava",
        CHART,
        "--show-only=templates/worker/lease-policy.yaml",
    ];
    let policy = cluster.helm(&policy).await?;
    cluster.apply(&policy).await?;
    for words in [
        "create serviceaccount llava-worker",
        "create role leases --verb=get,create,update,patch,delete --resource=leases.coordination.k8s.io",
        "create rolebinding leases --role=leases --serviceaccount=default:llava-worker",
    ] {
        cluster
            .kubectl(&words.split(' ').collect::<Vec<_>>())
            .await?;
    }
    let leases: Api<Lease> = Api::default_namespaced(cluster.client());
    for name in ["mine", "theirs"] {
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"serviceAccountName": "llava-worker", "containers": [{"name": "worker", "image": "worker"}]},
        });
        cluster.apply(&pod.to_string()).await?;
        let lease = serde_json::from_value(
            json!({"metadata": {"name": name, "labels": {"llava.dev/worker": name}}}),
        )?;
        leases.create(&PostParams::default(), &lease).await?;
    }
    let bound = [
        "create",
        "token",
        "llava-worker",
        "--bound-object-kind=Pod",
        "--bound-object-name=mine",
    ];
    let worker = cluster
        .client_as(cluster.kubectl(&bound).await?.trim())
        .await?;
    let unbound = cluster
        .kubectl(&["create", "token", "llava-worker"])
        .await?;
    let unbound = cluster.client_as(unbound.trim()).await?;

    // The policy takes effect a moment after it is created.
    let what = "a refusal by the policy";
    tests::cluster::wait_for(what, std::time::Duration::from_secs(30), async || {
        renew(&worker, "theirs").await.err()
    })
    .await?;
    renew(&worker, "mine").await?;
    let said = forbidden(renew(&worker, "theirs").await);
    assert!(
        said.contains("a token of pod mine may not write Lease theirs"),
        "{said}"
    );
    let said = forbidden(renew(&unbound, "mine").await);
    assert!(
        said.contains("a token of no pod may not write Lease mine"),
        "{said}"
    );
    renew(&cluster.client(), "theirs").await?;
    Ok(())
}
