//! Of two operators one works; when it dies the other finishes what it began, and
//! nothing is done twice.

use std::time::Duration;

use crds::{LlavaDeployment, LlavaWorker};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use llava_operator::run::Candidate;
use serde_json::json;
use tests::Cluster;
use tests::cluster::wait_for;
use tests::fault::{Call, Faults};
use tests::history::{History, kind};
use tests::operator::{Operator, deployment, settings, wait_status};

/// Longer than a dead leader's Lease lasts.
const TAKEOVER: Duration = Duration::from_secs(60);
const LEASE: &str = "llava-operator";

async fn candidate(cluster: &Cluster, identity: &str) -> anyhow::Result<Operator> {
    let candidate = Candidate {
        namespace: "default".to_owned(),
        lease: LEASE.to_owned(),
        identity: identity.to_owned(),
    };
    Operator::with(cluster, settings(None), Some(candidate), Faults::none()).await
}

/// Writes but those of the election itself.
fn deeds(operator: &Operator) -> Vec<Call> {
    let mut writes = operator.faults.writes();
    writes.retain(|call| {
        !call.path.ends_with(&format!("/leases/{LEASE}"))
            && !call.path.ends_with("/namespaces/default/leases")
    });
    writes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_leaders_work_is_finished_by_the_other_and_nothing_is_done_twice()
-> anyhow::Result<()> {
    let cluster = Cluster::control_plane()
        .with_kinds()
        .with_fake_nodes(2)
        .await?;
    let client = cluster.client();
    let kinds = [kind::<LlavaWorker>(), kind::<Pod>()];
    let history = History::record(&client, "default", &kinds).await?;
    let (one, two) = (
        candidate(&cluster, "one").await?,
        candidate(&cluster, "two").await?,
    );
    let deployments: Api<LlavaDeployment> = Api::default_namespaced(client.clone());
    let object = deployment("llava", json!({"replicas": 2}))?;
    deployments.create(&PostParams::default(), &object).await?;
    wait_status(&client, "default", "llava", |status| {
        status.available_replicas == 2
    })
    .await?;
    let (leader, follower) = if deeds(&one).is_empty() {
        (two, one)
    } else {
        (one, two)
    };
    assert!(!deeds(&leader).is_empty());
    assert!(deeds(&follower).is_empty(), "{:#?}", deeds(&follower));

    leader.kill().await;
    let more = Patch::Merge(json!({"spec": {"replicas": 4}}));
    deployments
        .patch("llava", &PatchParams::default(), &more)
        .await?;
    let grown = async || {
        let status = deployments.get("llava").await.ok()?.status?;
        (status.available_replicas == 4).then_some(())
    };
    wait_for("the other to take over", TAKEOVER, grown).await?;
    history.caught_up().await?;
    let lives = history.lives();
    let ours: Vec<_> = lives
        .iter()
        .filter(|(name, _)| name.contains("llava"))
        .collect();
    assert_eq!(ours.len(), 8, "{ours:?}");
    for (name, life) in ours {
        assert_eq!(*life, (1, 0), "{name} is made once and stays");
    }
    Ok(())
}
