//! Workers die; clients notice at most a cut stream, told in one event, and the
//! replacement takes over.

use std::collections::BTreeMap;

use crds::resources::Resources;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;
use tests::ask::Question;
use tests::cluster::wait_for;
use tests::install::{Installed, PATIENCE, example_image, llava_shapes};
use tests::load::Load;
use tokio::sync::oneshot;

/// Waits until a worker answers whose name and number of restarts are as asked.
async fn answers(
    llava: &Installed,
    question: &Question,
    is_new: impl Fn(&String, i32) -> bool,
) -> anyhow::Result<()> {
    let asker = llava.asker().await?;
    let restarts = |pod: Pod| {
        let status = pod.status.unwrap_or_default();
        let containers = status.container_statuses.unwrap_or_default();
        containers.iter().map(|one| one.restart_count).sum::<i32>()
    };
    let answered = async || {
        // A worker that starts again has done so before it is asked.
        let workers = llava.workers("llava-shapes").await.ok()?;
        let named = workers
            .into_iter()
            .map(|pod| (pod.name_any(), restarts(pod)));
        let mut new = named.filter(|(name, restarts)| is_new(name, *restarts));
        let answer = asker.whole(question).await.ok()?;
        let worker = answer.worker.clone().filter(|_| answer.is_whole())?;
        new.any(|(name, _)| name == worker).then_some(())
    };
    wait_for("the replacement to answer", PATIENCE, answered).await?;
    Ok(())
}

#[tokio::test]
async fn a_deleted_worker_finishes_its_streams_and_is_replaced() -> anyhow::Result<()> {
    let llava = Installed::start().await?;
    llava.apply(&llava_shapes()?).await?;
    llava.wait_ready("llava-shapes", 2).await?;
    let question = Question::about(example_image("shapes.png")?, "What is in the image?");
    let load = Load::start(&llava.asker().await?, &question, 4);

    let before = llava.workers("llava-shapes").await?;
    let before: Vec<String> = before.iter().map(|pod| pod.name_any()).collect();
    llava
        .kubectl(&["delete", "pod", &before[0], "--wait=true", "--timeout=60s"])
        .await?;
    answers(&llava, &question, |name, _| !before.contains(name)).await?;
    llava.wait_ready("llava-shapes", 2).await?;

    let account = load.stop().await;
    assert!(
        account.failed.is_empty(),
        "no request fails: {:#?}",
        account.failed
    );
    Ok(())
}

#[tokio::test]
async fn a_worker_killed_mid_stream_cuts_that_stream_with_one_error_event_and_no_other()
-> anyhow::Result<()> {
    let llava = Installed::start().await?;
    // Slow enough that the kill comes long before the end of the answer.
    let mut deployment = llava_shapes()?;
    let slow = BTreeMap::from([("cpu".to_owned(), Quantity("50m".to_owned()))]);
    deployment.spec.resources = Some(Resources {
        requests: slow.clone(),
        limits: slow,
    });
    llava.apply(&deployment).await?;
    llava.wait_ready("llava-shapes", 2).await?;
    let asker = llava.asker().await?;
    let image = example_image("shapes.png")?;
    let question = Question::about(image, "What is in the image?");

    // The cut stream is the only one: a whole answer that breaks is asked of another worker.
    let mut load = Load::of_whole_answers(&asker, &question, 4);
    load.is_under_way().await;
    let endless = question.clone().endless();
    let (began, first_words) = oneshot::channel();
    let mut began = Some(began);
    let watcher = asker.clone();
    let cut = tokio::spawn(async move {
        let tell = |answer: &tests::ask::Answer| {
            if let (Some(worker), Some(began)) = (answer.worker.clone(), began.take()) {
                let _ = began.send(worker);
            }
        };
        watcher.watch(&endless, tell).await
    });
    let worker = first_words.await?;
    let before = llava.workers("llava-shapes").await?;
    llava.kill(&worker).await?;

    let cut = cut.await??;
    assert_eq!(
        cut.errors.len(),
        1,
        "one error event ends the stream: {cut:?}"
    );
    assert!(
        !cut.done,
        "a cut stream does not pretend to be whole: {cut:?}"
    );
    // The container starts again in its Pod, or another worker comes.
    let known = before.iter().map(ResourceExt::name_any);
    let known: Vec<String> = known.collect();
    let is_new = |name: &String, restarts| !known.contains(name) || restarts > 0;
    answers(&llava, &question, is_new).await?;
    llava.wait_ready("llava-shapes", 2).await?;
    let account = load.stop().await;
    assert!(
        account.failed.is_empty(),
        "no other request fails: {:#?}",
        account.failed
    );
    Ok(())
}
