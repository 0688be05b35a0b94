//! Serving does not need the API server: while it is away traffic goes on,
//! nobody is killed, and all is as wished once it is back.

use std::collections::BTreeMap;
use std::time::Duration;

use crds::LlavaWorker;
use k8s_openapi::api::coordination::v1::Lease;
use kube::ResourceExt as _;
use kube::api::ListParams;
use tests::ask::Question;
use tests::cluster::{Program, wait_for};
use tests::install::{Installed, PATIENCE, example_image, llava_shapes};
use tests::load::Load;

/// Longer than any Lease lasts.
const AWAY: Duration = Duration::from_secs(60);

#[tokio::test]
async fn traffic_goes_on_and_nobody_is_killed_while_the_api_server_is_away() -> anyhow::Result<()> {
    let llava = Installed::start().await?;
    llava.apply(&llava_shapes()?).await?;
    llava.wait_ready("llava-shapes", 2).await?;
    let before = llava.worker_uids("llava-shapes").await?;
    let question = Question::about(example_image("shapes.png")?, "What is in the image?");
    let load = Load::start(&llava.asker().await?, &question, 2);

    llava.cluster().kill(Program::ApiServer).await?;
    // What is promised is that nothing happens for so long.
    tokio::time::sleep(AWAY).await;
    llava.cluster().restart(Program::ApiServer).await?;
    all_are_back(&llava).await?;
    llava.wait_ready("llava-shapes", 2).await?;

    assert_eq!(
        llava.worker_uids("llava-shapes").await?,
        before,
        "the same workers as before"
    );
    let account = load.stop().await;
    assert!(
        account.failed.is_empty(),
        "no request fails: {:#?}",
        account.failed
    );
    assert!(account.whole > 0, "the clients asked");
    llava
        .kubectl(&["scale", "lld/llava-shapes", "--replicas=1"])
        .await?;
    // Kubernetes' own controllers may take more than a minute to be back, and end the Pod after that.
    let workers = llava.api::<LlavaWorker>();
    let is_live = |worker: &LlavaWorker| worker.metadata.deletion_timestamp.is_none();
    wait_for("the operator to delete one of two", PATIENCE, async || {
        let all = workers.list(&ListParams::default()).await.ok()?;
        (all.iter().filter(|worker| is_live(worker)).count() == 1).then_some(())
    })
    .await?;
    let after = llava.worker_uids("llava-shapes").await?;
    assert!(after.is_subset(&before), "nobody was replaced: {after:?}");
    Ok(())
}

/// Waits until the operator and every worker have renewed their Leases after the
/// API server came back.
async fn all_are_back(llava: &Installed) -> anyhow::Result<()> {
    let leases = llava.api::<Lease>();
    let renewals = async || {
        let all = leases.list(&ListParams::default()).await.ok()?;
        let renewed = |lease: &Lease| lease.spec.as_ref()?.renew_time.clone();
        let renewals = all.iter().map(|one| (one.name_any(), renewed(one)));
        Some(renewals.collect::<BTreeMap<_, _>>())
    };
    let at_first = wait_for("the API server to answer", PATIENCE, renewals).await?;
    assert!(at_first.contains_key("llava-operator"), "{at_first:?}");
    assert!(at_first.len() > 2, "the workers have Leases: {at_first:?}");
    wait_for("every Lease to be renewed", PATIENCE, async || {
        let now = renewals().await?;
        let renewed = |name: &String| now.get(name) > at_first.get(name);
        at_first.keys().all(renewed).then_some(())
    })
    .await?;
    Ok(())
}
