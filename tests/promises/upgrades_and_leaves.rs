//! `helm upgrade` keeps workers running, and uninstalling leaves nothing behind.

use anyhow::Context as _;
use crds::LlavaDeployment;
use kube::api::DeleteParams;
use tests::cluster::wait_for;
use tests::install::{Installed, PATIENCE, llava_shapes};

#[tokio::test]
async fn an_upgrade_keeps_the_workers_and_an_uninstall_leaves_nothing() -> anyhow::Result<()> {
    let llava = Installed::start().await?;
    llava.apply(&llava_shapes()?).await?;
    llava.wait_ready("llava-shapes", 2).await?;
    let before = llava.worker_uids("llava-shapes").await?;

    llava.helm("upgrade", &["log.filter=debug"]).await?;
    llava
        .kubectl(&[
            "rollout",
            "status",
            "deployment/llava-operator",
            "--timeout=60s",
        ])
        .await?;
    llava.wait_ready("llava-shapes", 2).await?;
    assert_eq!(
        llava.worker_uids("llava-shapes").await?,
        before,
        "the same workers as before"
    );

    let deployments = llava.api::<LlavaDeployment>();
    deployments
        .delete("llava-shapes", &DeleteParams::foreground())
        .await?;
    llava.wait_workers("llava-shapes", 0).await?;
    llava.uninstall().await?;
    let kinds =
        "all,configmaps,secrets,leases,serviceaccounts,roles,rolebindings,pdb,networkpolicies";
    let own = ["configmap/kube-root-ca.crt", "serviceaccount/default"];
    let mut left = String::new();
    // Pods drain before they go.
    let gone = wait_for("nothing of the release is left", PATIENCE, async || {
        left = llava.kubectl(&["get", kinds, "-o", "name"]).await.ok()?;
        left.lines().all(|line| own.contains(&line)).then_some(())
    });
    let gone = gone.await;
    gone.with_context(|| format!("left:\n{left}"))?;
    Ok(())
}
