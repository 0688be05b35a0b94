//! Scaling is invisible to clients: workers come and go without one failed request.

use tests::ask::Question;
use tests::install::{Installed, example_image, llava_shapes};
use tests::load::Load;

#[tokio::test]
async fn scaling_from_one_to_three_and_back_under_load_fails_no_request() -> anyhow::Result<()> {
    let llava = Installed::start().await?;
    let mut deployment = llava_shapes()?;
    deployment.spec.replicas = Some(1);
    llava.apply(&deployment).await?;
    llava.wait_ready("llava-shapes", 1).await?;

    let question = Question::about(example_image("shapes.png")?, "What is in the image?");
    let load = Load::start(&llava.asker().await?, &question, 4);
    llava
        .kubectl(&["scale", "lld/llava-shapes", "--replicas=3"])
        .await?;
    llava.wait_ready("llava-shapes", 3).await?;
    llava
        .kubectl(&["scale", "lld/llava-shapes", "--replicas=1"])
        .await?;
    llava.wait_ready("llava-shapes", 1).await?;
    llava.wait_workers("llava-shapes", 1).await?;

    let account = load.stop().await;
    assert!(
        account.failed.is_empty(),
        "no request fails: {:#?}",
        account.failed
    );
    assert!(account.whole > 0, "the clients asked");
    Ok(())
}
