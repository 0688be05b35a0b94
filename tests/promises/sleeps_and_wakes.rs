//! A deployment without requests goes to sleep; the first request wakes it and is
//! held until a worker can answer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use crds::autoscaling::Autoscaling;
use crds::engine::{Engine, NativeEngine};
use crds::resources::Resources;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use tests::ask::Question;
use tests::cluster::{REAL_NODE, wait_for};
use tests::install::{Installed, PATIENCE, example_image, llava_shapes};
use tokio::task::JoinSet;

/// Requests that find the deployment asleep.
const HELD: usize = 5;

#[tokio::test]
async fn an_idle_deployment_sleeps_and_its_first_requests_wake_it_and_are_answered_in_order()
-> anyhow::Result<()> {
    let llava = Installed::start().await?;
    let mut deployment = llava_shapes()?;
    deployment.spec.replicas = None;
    // One slow answer after the other, so that their ends show their order.
    let slow = BTreeMap::from([("cpu".to_owned(), Quantity("100m".to_owned()))]);
    deployment.spec.resources = Some(Resources {
        requests: slow.clone(),
        limits: slow,
    });
    deployment.spec.engine = Engine {
        native: Some(NativeEngine {
            max_running_requests: Some(1),
            ..NativeEngine::default()
        }),
    };
    deployment.spec.autoscaling = Some(Autoscaling {
        min_replicas: 0,
        max_replicas: 1,
        target_queue_length: 4,
        scale_down_delay: "2s".parse()?,
        idle_timeout: Some("5s".parse()?),
    });
    llava.apply(&deployment).await?;
    llava.wait_workers("llava-shapes", 0).await?;
    let asker = llava.asker().await?;
    wait_for("a sleeping model to be listed", PATIENCE, async || {
        (asker.models().await.ok()? == ["llava-shapes"]).then_some(())
    })
    .await?;

    // No worker comes up before all of them are there.
    llava.cluster().kubectl(&["cordon", REAL_NODE]).await?;
    let question = Question::about(example_image("shapes.png")?, "What is in the image?");
    let question = question.endless().max_tokens(200);
    let ended = Arc::new(Mutex::new(Vec::new()));
    let mut clients = JoinSet::new();
    for number in 0..HELD {
        let (asker, question, ended) = (asker.clone(), question.clone(), Arc::clone(&ended));
        clients.spawn(async move {
            let streams = number % 2 == 0;
            let answer = match streams {
                true => asker.stream(&question).await?,
                false => asker.whole(&question).await?,
            };
            assert!(
                answer.is_whole() && answer.done == streams,
                "a held request is answered: {answer:?}"
            );
            ended.lock().unwrap().push(number);
            anyhow::Ok(())
        });
        let what = format!("the router to hold {} requests", number + 1);
        wait_for(&what, PATIENCE, async || {
            (llava.waiting().await.ok()? == number + 1).then_some(())
        })
        .await?;
    }
    assert!(
        llava.workers("llava-shapes").await?.len() <= 1 && ended.lock().unwrap().is_empty(),
        "all were held while the worker came up"
    );
    llava.cluster().kubectl(&["uncordon", REAL_NODE]).await?;
    clients
        .join_all()
        .await
        .into_iter()
        .collect::<anyhow::Result<()>>()?;
    // The one that runs and the one behind it are at the worker together.
    let ended = ended.lock().unwrap().clone();
    for (place, number) in ended.iter().enumerate() {
        assert!(place.abs_diff(*number) <= 1, "{ended:?}");
    }

    llava.wait_workers("llava-shapes", 0).await
}
