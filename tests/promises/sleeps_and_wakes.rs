//! A deployment without requests goes to sleep; the first request wakes it and is
//! held until a worker can answer.

use crds::autoscaling::Autoscaling;
use tests::ask::Question;
use tests::install::{Installed, example_image, llava_shapes};

#[tokio::test]
async fn an_idle_deployment_sleeps_and_its_first_requests_wake_it_and_are_answered()
-> anyhow::Result<()> {
    let llava = Installed::start().await?;
    let mut deployment = llava_shapes()?;
    deployment.spec.replicas = None;
    deployment.spec.autoscaling = Some(Autoscaling {
        min_replicas: 0,
        max_replicas: 1,
        target_queue_length: 4,
        scale_down_delay: "2s".parse()?,
        idle_timeout: Some("5s".parse()?),
    });
    llava.apply(&deployment).await?;
    llava.wait_workers("llava-shapes", 0).await?;
    assert_eq!(
        llava.asker().await?.models().await?,
        ["llava-shapes"],
        "a sleeping model is listed"
    );

    let asker = llava.asker().await?;
    let question = Question::about(example_image("shapes.png")?, "What is in the image?");
    let (streamed, whole) = tokio::join!(asker.stream(&question), asker.whole(&question));
    let (streamed, whole) = (streamed?, whole?);
    assert!(
        streamed.is_whole() && streamed.done,
        "the held stream is answered: {streamed:?}"
    );
    assert!(whole.is_whole(), "the held request is answered: {whole:?}");

    llava.wait_workers("llava-shapes", 0).await
}
