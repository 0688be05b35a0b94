//! Where the chart asks for it, each deployment's workers are closed by a
//! NetworkPolicy of their own, for as long as it is asked for.

use std::time::Duration;

use http::Method;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::{Api, ResourceExt};
use serde_json::json;
use tests::cluster::wait_for;
use tests::fault::Faults;
use tests::operator::{Operator, Scene, settings};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_are_closed_while_the_operator_is_told_so_and_open_again_after()
-> anyhow::Result<()> {
    let Scene { cluster, operator } = Scene::start(1).await?;
    operator.kill().await;
    let mut closed = settings(None);
    let router =
        json!({"podSelector": {"matchLabels": {"app.kubernetes.io/name": "llava-router"}}});
    let rules = json!({
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [router], "ports": [{"port": "http"}]}, {"ports": [{"port": "admin"}]}],
    });
    closed.worker_network_policy = Some(serde_json::from_value(rules)?);
    let operator = Operator::with(&cluster, closed, None, Faults::none()).await?;
    let scene = Scene { cluster, operator };
    scene.serve("llava", json!({"replicas": 1})).await?;
    let policies: Api<NetworkPolicy> = scene.api();
    let policy = policies.get("llava-workers").await?;
    assert_eq!(policy.owner_references()[0].kind, "LlavaDeployment");
    let spec = serde_json::to_value(policy.spec)?;
    let labels = &scene
        .pods("llava")
        .await?
        .remove(0)
        .metadata
        .labels
        .unwrap_or_default();
    let selected = spec["podSelector"]["matchLabels"].as_object().cloned();
    for (key, value) in selected.unwrap_or_default() {
        assert_eq!(labels.get(&key).map(String::as_str), value.as_str());
    }
    assert_eq!(spec["ingress"][0]["from"][0], router);
    assert_eq!(spec["ingress"][0]["ports"][0]["port"], "http");

    let Scene { cluster, operator } = scene;
    operator.kill().await;
    let open = Operator::start(&cluster, None, Faults::none()).await?;
    let gone = async || {
        policies
            .get_opt("llava-workers")
            .await
            .ok()?
            .is_none()
            .then_some(())
    };
    wait_for("the policy to go", SOON, gone).await?;
    // What the other operator had not written yet when it ended is written, too.
    let mut removed = open.faults.writes();
    removed.retain(|call| call.method == Method::DELETE);
    assert_eq!(removed.len(), 1, "{removed:#?}");
    Ok(())
}
