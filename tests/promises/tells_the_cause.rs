//! When workers cannot come up, `kubectl get lld` says why, and they come up once
//! the cause is mended.

use std::time::Duration;

use crds::LlavaDeployment;
use crds::source::{PersistentVolumeClaim, Source};
use tests::cluster::wait_for;
use tests::install::{Installed, llava_shapes};

/// From the API server's answer to the true cause in the status.
const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_wrong_path_a_missing_claim_and_a_missing_image_show_their_cause_and_heal()
-> anyhow::Result<()> {
    let llava = Installed::start().await?;
    let good = llava_shapes()?;
    for (name, spoil, cause) in [
        (
            "wrong-path",
            wrong_path as fn(&mut LlavaDeployment),
            "nothing-here",
        ),
        ("no-claim", missing_claim, "no-such-claim"),
        ("no-image", missing_image, "no-such-image"),
    ] {
        let mut bad = good.clone();
        bad.metadata.name = Some(name.into());
        bad.spec.replicas = Some(1);
        let mut mended = bad.clone();
        spoil(&mut bad);
        llava.apply(&bad).await?;
        wait_for_message(&llava, name, cause).await?;
        mended.spec.model.name = Some(name.into());
        llava.apply(&mended).await?;
        llava.wait_ready(name, 1).await?;
    }
    Ok(())
}

fn wrong_path(deployment: &mut LlavaDeployment) {
    if let Some(image) = &mut deployment.spec.model.source.image {
        image.path = Some("nothing-here".into());
    }
}

fn missing_claim(deployment: &mut LlavaDeployment) {
    deployment.spec.model.source = Source {
        persistent_volume_claim: Some(PersistentVolumeClaim {
            claim_name: "no-such-claim".into(),
            path: None,
        }),
        ..Source::default()
    };
}

fn missing_image(deployment: &mut LlavaDeployment) {
    deployment.spec.pod.image = Some("localhost/no-such-image:1".into());
}

/// Waits until a condition of the deployment names the cause.
async fn wait_for_message(llava: &Installed, name: &str, cause: &str) -> anyhow::Result<()> {
    let what = format!("the status of {name} to name {cause}");
    let told = wait_for(&what, SOON, async || {
        let deployment = llava.api::<LlavaDeployment>().get(name).await.ok()?;
        let conditions = deployment.status?.conditions;
        conditions
            .iter()
            .any(|condition| condition.message.contains(cause))
            .then_some(())
    });
    if let Err(error) = told.await {
        let state = llava.kubectl(&["get", "lld,llw", "-o", "yaml"]).await?;
        anyhow::bail!("{error}; the state is\n{state}");
    }
    Ok(())
}
