//! The control plane of the local cluster is a whole one, and several live side by side.

use std::{collections::BTreeSet, time::Duration};

use futures::{StreamExt, TryStreamExt, future, stream};
use k8s_openapi::api::{
    apps::v1::ReplicaSet,
    core::v1::{ConfigMap, Event, Namespace, Pod},
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, PostParams},
};
use serde_json::json;
use tests::{
    Cluster,
    cluster::{Program, wait_for},
};

use crate::machine::Traces;

const SOON: Duration = Duration::from_secs(60);

fn map(name: &str) -> ConfigMap {
    let mut map = ConfigMap::default();
    map.metadata.name = Some(name.to_owned());
    map
}

fn replica_set() -> anyhow::Result<ReplicaSet> {
    Ok(serde_json::from_value(json!({
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "web", "image": "web"}]},
            },
        },
    }))?)
}

#[tokio::test]
async fn controllers_scheduler_and_garbage_collector_are_at_work() -> anyhow::Result<()> {
    let cluster = Cluster::control_plane().await?;
    let sets: Api<ReplicaSet> = Api::default_namespaced(cluster.client());
    sets.create(&PostParams::default(), &replica_set()?).await?;

    let pods: Api<Pod> = Api::default_namespaced(cluster.client());
    let all = ListParams::default();
    wait_for("two pods of the replica set", SOON, async || {
        (pods.list(&all).await.ok()?.items.len() == 2).then_some(())
    })
    .await?;
    let events: Api<Event> = Api::default_namespaced(cluster.client());
    let refused = ListParams::default().fields("reason=FailedScheduling");
    wait_for(
        "word of the scheduler that there is no node",
        SOON,
        async || (!events.list(&refused).await.ok()?.items.is_empty()).then_some(()),
    )
    .await?;

    sets.delete("web", &DeleteParams::background()).await?;
    wait_for("the pods' end after their owner's", SOON, async || {
        pods.list(&all).await.ok()?.items.is_empty().then_some(())
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_namespace_ends_with_all_that_is_in_it() -> anyhow::Result<()> {
    let cluster = Cluster::control_plane().await?;
    let namespaces: Api<Namespace> = Api::all(cluster.client());
    cluster
        .kubectl(&["create", "namespace", "short-lived"])
        .await?;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client(), "short-lived");
    maps.create(&PostParams::default(), &map("inside")).await?;
    namespaces
        .delete("short-lived", &DeleteParams::default())
        .await?;
    wait_for("the namespace's end", SOON, async || {
        namespaces
            .get_opt("short-lived")
            .await
            .ok()?
            .is_none()
            .then_some(())
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn four_clusters_side_by_side_see_nothing_of_each_other() -> anyhow::Result<()> {
    let clusters =
        future::try_join_all((0..4).map(|_| async { Cluster::control_plane().await })).await?;
    let addresses: BTreeSet<_> = clusters.iter().map(Cluster::node_address).collect();
    assert_eq!(addresses.len(), 4);
    for (number, cluster) in clusters.iter().enumerate() {
        let maps: Api<ConfigMap> = Api::default_namespaced(cluster.client());
        maps.create(&PostParams::default(), &map(&format!("of-{number}")))
            .await?;
    }
    for (number, cluster) in clusters.iter().enumerate() {
        let maps: Api<ConfigMap> = Api::default_namespaced(cluster.client());
        let found = maps.list(&ListParams::default()).await?;
        let names: BTreeSet<_> = found
            .items
            .iter()
            .filter_map(|map| map.metadata.name.clone())
            .collect();
        let wanted = BTreeSet::from(["kube-root-ca.crt".to_owned(), format!("of-{number}")]);
        assert!(names.is_subset(&wanted), "{names:?}");
        assert!(names.contains(&format!("of-{number}")));
    }
    Ok(())
}

#[tokio::test]
async fn twenty_clusters_in_a_row_start_and_leave_nothing() -> anyhow::Result<()> {
    let left: Vec<Vec<String>> = stream::iter(0..20)
        .map(|_| async {
            let cluster = Cluster::control_plane().await?;
            let traces = Traces::of(&cluster).await?;
            drop(cluster);
            traces.found().await
        })
        .buffered(1)
        .try_collect()
        .await?;
    assert_eq!(left, vec![Vec::<String>::new(); 20]);
    Ok(())
}

#[tokio::test]
async fn objects_outlive_a_crash_of_the_api_server() -> anyhow::Result<()> {
    let cluster = Cluster::control_plane().await?;
    let maps: Api<ConfigMap> = Api::default_namespaced(cluster.client());
    maps.create(&PostParams::default(), &map("before")).await?;
    cluster.kill(Program::ApiServer).await?;
    assert!(
        maps.get("before").await.is_err(),
        "nobody is there to answer"
    );
    cluster.restart(Program::ApiServer).await?;
    wait_for("an answer after the restart", SOON, async || {
        maps.get("before").await.ok()
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_frozen_api_server_answers_again_when_it_is_thawed() -> anyhow::Result<()> {
    let cluster = Cluster::control_plane().await?;
    let maps: Api<ConfigMap> = Api::default_namespaced(cluster.client());
    cluster.freeze(Program::ApiServer).await?;
    let brief = Duration::from_millis(500);
    let all = ListParams::default();
    assert!(tokio::time::timeout(brief, maps.list(&all)).await.is_err());
    cluster.thaw(Program::ApiServer).await?;
    tokio::time::timeout(SOON, maps.list(&all)).await??;
    Ok(())
}
