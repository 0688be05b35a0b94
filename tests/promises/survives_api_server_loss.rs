//! Serving does not need the API server: while it is away traffic goes on,
//! nobody is killed, and all is as wished once it is back.

use std::time::Duration;

use tests::ask::Question;
use tests::cluster::Program;
use tests::install::{Installed, example_image, llava_shapes};
use tests::load::Load;

/// Longer than any Lease lasts.
const AWAY: Duration = Duration::from_secs(60);

#[tokio::test]
async fn traffic_goes_on_and_nobody_is_killed_while_the_api_server_is_away() -> anyhow::Result<()> {
    let llava = Installed::start().await?;
    llava.apply(&llava_shapes()?).await?;
    llava.wait_ready("llava-shapes", 2).await?;
    let before = llava.worker_uids("llava-shapes").await?;
    let question = Question::about(example_image("shapes.png")?, "What is in the image?");
    let load = Load::start(&llava.asker().await?, &question, 2);

    llava.cluster().kill(Program::ApiServer).await?;
    // What is promised is that nothing happens for so long.
    tokio::time::sleep(AWAY).await;
    llava.cluster().restart(Program::ApiServer).await?;
    llava.wait_ready("llava-shapes", 2).await?;

    assert_eq!(
        llava.worker_uids("llava-shapes").await?,
        before,
        "the same workers as before"
    );
    let account = load.stop().await;
    assert!(
        account.failed.is_empty(),
        "no request fails: {:#?}",
        account.failed
    );
    assert!(account.whole > 0, "the clients asked");
    llava
        .kubectl(&["scale", "lld/llava-shapes", "--replicas=1"])
        .await?;
    llava.wait_workers("llava-shapes", 1).await
}
