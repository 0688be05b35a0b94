//! Restarting the routers one after the other breaks no stream.

use tests::ask::Question;
use tests::install::{Installed, example_image, llava_shapes};
use tests::load::Load;

#[tokio::test]
async fn a_rolling_restart_of_the_routers_breaks_no_stream() -> anyhow::Result<()> {
    let llava = Installed::with(&["router.replicas=2"]).await?;
    llava.apply(&llava_shapes()?).await?;
    llava.wait_ready("llava-shapes", 2).await?;
    let question = Question::about(example_image("shapes.png")?, "What is in the image?");
    let load = Load::start(&llava.asker().await?, &question, 4);

    llava
        .kubectl(&["rollout", "restart", "deployment/llava-router"])
        .await?;
    llava
        .kubectl(&[
            "rollout",
            "status",
            "deployment/llava-router",
            "--timeout=120s",
        ])
        .await?;

    let account = load.stop().await;
    assert!(
        account.failed.is_empty(),
        "no request fails: {:#?}",
        account.failed
    );
    assert!(account.whole > 0, "the clients asked");
    Ok(())
}
