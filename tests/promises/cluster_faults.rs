//! The fault layer does to a real API server what it says.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, api::PostParams};
use tests::{
    Cluster,
    fault::{Fate, Faults},
};

#[tokio::test]
async fn a_write_is_done_or_not_done_as_its_fate_says() -> anyhow::Result<()> {
    let cluster = Cluster::control_plane().await?;
    let seen: Api<ConfigMap> = Api::default_namespaced(cluster.client());
    for (name, fate, done) in [
        ("dropped", Fate::Drop, false),
        ("lost", Fate::Lose, true),
        (
            "refused",
            Fate::Fail(http::StatusCode::INTERNAL_SERVER_ERROR),
            false,
        ),
        ("dead-before", Fate::KillBefore, false),
        ("dead-after", Fate::KillAfter, true),
    ] {
        let faults = Faults::at_write(0, fate);
        let maps: Api<ConfigMap> = Api::default_namespaced(cluster.client_with(&faults).await?);
        let mut map = ConfigMap::default();
        map.metadata.name = Some(name.into());
        let how = PostParams::default();
        tokio::select! {
            written = maps.create(&how, &map) => assert!(written.is_err()),
            () = faults.killed() => assert!(name.starts_with("dead")),
        }
        assert_eq!(seen.get_opt(name).await?.is_some(), done, "{name}");
        assert_eq!(faults.writes().len(), 1);
    }
    Ok(())
}
