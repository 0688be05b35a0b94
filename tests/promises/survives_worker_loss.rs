//! Workers die; clients notice at most a cut stream, told in one event, and the
//! replacement takes over.

use std::collections::BTreeMap;

use crds::resources::Resources;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt as _;
use tests::ask::Question;
use tests::install::{Installed, example_image, llava_shapes};
use tests::load::Load;
use tokio::sync::oneshot;

#[tokio::test]
async fn a_deleted_worker_finishes_its_streams_and_is_replaced() -> anyhow::Result<()> {
    let llava = Installed::start().await?;
    llava.apply(&llava_shapes()?).await?;
    llava.wait_ready("llava-shapes", 2).await?;
    let question = Question::about(example_image("shapes.png")?, "What is in the image?");
    let load = Load::start(&llava.asker().await?, &question, 4);

    let victim = llava.workers("llava-shapes").await?.remove(0).name_any();
    llava
        .kubectl(&["delete", "pod", &victim, "--wait=true", "--timeout=60s"])
        .await?;
    llava.wait_ready("llava-shapes", 2).await?;
    let names: Vec<String> = llava
        .workers("llava-shapes")
        .await?
        .iter()
        .map(|pod| pod.name_any())
        .collect();
    assert!(
        !names.contains(&victim),
        "a new worker, not the old one: {names:?}"
    );

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
    // Slow enough that the kill comes before the end of the answer.
    let mut deployment = llava_shapes()?;
    let slow = BTreeMap::from([("cpu".to_owned(), Quantity("100m".to_owned()))]);
    deployment.spec.resources = Some(Resources {
        requests: slow.clone(),
        limits: slow,
    });
    llava.apply(&deployment).await?;
    llava.wait_ready("llava-shapes", 2).await?;
    let asker = llava.asker().await?;
    let image = example_image("shapes.png")?;
    let question = Question::about(image, "What is in the image?");

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
    // The cut stream is the only one: a whole answer that breaks is asked of another worker.
    let mut load = Load::of_whole_answers(&asker, &question, 4);
    load.is_under_way().await;
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
    llava.wait_ready("llava-shapes", 2).await?;
    let account = load.stop().await;
    assert!(
        account.failed.is_empty(),
        "no other request fails: {:#?}",
        account.failed
    );
    Ok(())
}
