//! The operator may die at any moment: what it began is finished by its successor.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::ListParams;
use tests::ask::Question;
use tests::install::{Installed, example_image, llava_shapes};
use tests::load::Load;

#[tokio::test]
async fn an_operator_killed_in_the_middle_of_a_rollout_finishes_it() -> anyhow::Result<()> {
    let llava = Installed::start().await?;
    let mut deployment = llava_shapes()?;
    llava.apply(&deployment).await?;
    llava.wait_ready("llava-shapes", 2).await?;
    let question = Question::about(example_image("shapes.png")?, "What is in the image?");
    let load = Load::start(&llava.asker().await?, &question, 2);

    deployment
        .spec
        .pod
        .annotations
        .insert("example.com/reason".into(), "new template".into());
    llava.apply(&deployment).await?;
    llava.wait_workers("llava-shapes", 3).await?;
    let selector = "app.kubernetes.io/name=llava-operator";
    let pods = llava.api::<Pod>();
    let operators = pods.list(&ListParams::default().labels(selector)).await?;
    llava.kill(&operators.items[0].name_any()).await?;
    llava.wait_ready("llava-shapes", 2).await?;

    let account = load.stop().await;
    assert!(
        account.failed.is_empty(),
        "no request fails: {:#?}",
        account.failed
    );
    Ok(())
}
