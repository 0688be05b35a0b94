//! A new template replaces every worker, within its bounds, while clients ask on.

use std::collections::BTreeMap;

use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt as _;
use kube::runtime::{WatchStreamExt as _, watcher};
use tests::ask::Question;
use tests::install::{Installed, example_image, llava_shapes};
use tests::load::Load;

const WISHED: usize = 2;
const SURGE: usize = 1;

#[tokio::test]
async fn a_rollout_under_load_fails_no_request_and_keeps_its_bounds() -> anyhow::Result<()> {
    let llava = Installed::start().await?;
    let mut deployment = llava_shapes()?;
    deployment.spec.replicas = Some(i32::try_from(WISHED)?);
    deployment.spec.rollout.max_surge = IntOrString::Int(i32::try_from(SURGE)?);
    deployment.spec.rollout.max_unavailable = IntOrString::Int(0);
    llava.apply(&deployment).await?;
    llava.wait_ready("llava-shapes", 2).await?;

    let question = Question::about(example_image("shapes.png")?, "What is in the image?");
    let load = Load::start(&llava.asker().await?, &question, 4);
    let mut bounds = tokio::spawn(watch_bounds(llava.api()));
    deployment
        .spec
        .pod
        .annotations
        .insert("example.com/reason".into(), "new template".into());
    llava.apply(&deployment).await?;
    tokio::select! {
        broken = &mut bounds => anyhow::bail!("the watch of the bounds ended: {:?}", broken?),
        rolled = llava.wait_ready("llava-shapes", 2) => rolled?,
    }
    bounds.abort();

    let account = load.stop().await;
    assert!(
        account.failed.is_empty(),
        "no request fails: {:#?}",
        account.failed
    );
    assert!(account.whole > 0, "the clients asked");
    Ok(())
}

/// Follows every change of a Pod; ends with an error when a bound breaks.
async fn watch_bounds(pods: kube::Api<Pod>) -> anyhow::Result<()> {
    let selector = format!("{}=llava-shapes", crds::name::label::DEPLOYMENT);
    let config = watcher::Config::default().labels(&selector);
    let mut events = std::pin::pin!(watcher(pods, config).default_backoff());
    let mut seen: BTreeMap<String, (bool, bool)> = BTreeMap::new();
    let mut complete = false;
    while let Some(event) = events.try_next().await? {
        match event {
            watcher::Event::Init => seen.clear(),
            watcher::Event::InitApply(pod) | watcher::Event::Apply(pod) => {
                let terminating = pod.metadata.deletion_timestamp.is_some();
                seen.insert(pod.name_any(), (is_ready(&pod), terminating));
            }
            watcher::Event::InitDone => complete = true,
            watcher::Event::Delete(pod) => {
                seen.remove(&pod.name_any());
            }
        }
        if complete {
            let live = seen
                .values()
                .filter(|(_, terminating)| !terminating)
                .count();
            let ready = seen
                .values()
                .filter(|(ready, terminating)| *ready && !terminating)
                .count();
            anyhow::ensure!(live <= WISHED + SURGE, "{live} workers live: {seen:?}");
            anyhow::ensure!(ready >= WISHED, "only {ready} workers are ready: {seen:?}");
        }
    }
    Ok(())
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    conditions
        .into_iter()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
