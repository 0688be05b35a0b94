//! The main job: apply a LlavaDeployment, look at its workers, ask about an
//! image, and see the answer stream.

use tests::ask::Question;
use tests::cluster::wait_for;
use tests::install::{Installed, PATIENCE, example_image, llava_shapes};

#[tokio::test]
async fn an_applied_deployment_becomes_ready_and_streams_an_answer_about_an_image()
-> anyhow::Result<()> {
    let llava = Installed::start().await?;
    llava.apply(&llava_shapes()?).await?;
    llava.wait_ready("llava-shapes", 2).await?;

    llava
        .kubectl(&[
            "wait",
            "--for=condition=Available",
            "lld/llava-shapes",
            "--timeout=10s",
        ])
        .await?;
    // A worker's own status may follow the deployment's.
    wait_for("one row for each Ready worker", PATIENCE, async || {
        let table = llava.kubectl(&["get", "llavaworkers"]).await.ok()?;
        (table.matches("Ready").count() == 2).then_some(())
    })
    .await?;

    let asker = llava.asker().await?;
    assert_eq!(asker.models().await?, ["llava-shapes"]);
    let image = example_image("shapes.png")?;
    for (asked, answer) in [
        ("What color is the star?", "Yellow."),
        ("How many shapes are there?", "Three."),
        ("Is there a blue circle?", "No."),
        ("What is in the bottom middle?", "A yellow star."),
    ] {
        let said = asker.whole(&Question::about(image.clone(), asked)).await?;
        assert_eq!(said.text, answer, "{asked}");
    }
    let question = Question::about(image, "What is in the image?");
    let streamed = asker.stream(&question).await?;
    assert!(
        streamed.is_whole() && streamed.done,
        "a whole stream: {streamed:?}"
    );
    assert!(streamed.deltas > 1, "more than one piece: {streamed:?}");
    assert_eq!(
        streamed.text,
        "There is a large red circle in the top left, a large blue square in the top right and a large yellow star in the \
         bottom middle."
    );
    let whole = asker.whole(&question).await?;
    assert_eq!(
        whole.text, streamed.text,
        "greedy answers are equal, streamed or not"
    );
    Ok(())
}
