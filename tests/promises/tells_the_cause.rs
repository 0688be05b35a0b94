//! When workers cannot come up, `kubectl get lld` says why in a word and in a
//! condition in full, and they come up once the cause is mended.

use std::time::Duration;

use crds::LlavaDeployment;
use crds::source::{PersistentVolumeClaim, Source};
use tests::cluster::wait_for;
use tests::install::{Installed, llava_shapes};

/// From the API server's answer to the true cause in the status.
const SOON: Duration = Duration::from_secs(10);

/// A LlavaDeployment whose workers cannot come up.
struct Trouble {
    name: &'static str,
    spoil: fn(&mut LlavaDeployment),
    /// Words of which the column STATUS shows one.
    words: &'static [&'static str],
    /// What the message of a condition names.
    cause: &'static str,
}

const TROUBLES: [Trouble; 3] = [
    Trouble {
        name: "wrong-path",
        spoil: wrong_path,
        words: &["CreateContainerError"],
        cause: "nothing-here",
    },
    Trouble {
        name: "no-claim",
        spoil: missing_claim,
        words: &["VolumeClaimMissing"],
        cause: "no-such-claim",
    },
    Trouble {
        name: "no-image",
        spoil: missing_image,
        words: &["ErrImagePull", "ImagePullBackOff"],
        cause: "no-such-image",
    },
];

#[tokio::test]
async fn a_wrong_path_a_missing_claim_and_a_missing_image_show_their_cause_and_heal()
-> anyhow::Result<()> {
    let llava = Installed::start().await?;
    let good = llava_shapes()?;
    for trouble in TROUBLES {
        let mut bad = good.clone();
        bad.metadata.name = Some(trouble.name.into());
        bad.spec.replicas = Some(1);
        let mut mended = bad.clone();
        (trouble.spoil)(&mut bad);
        llava.apply(&bad).await?;
        wait_for_cause(&llava, &trouble).await?;
        mended.spec.model.name = Some(trouble.name.into());
        llava.apply(&mended).await?;
        llava.wait_ready(trouble.name, 1).await?;
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

/// Waits until `kubectl get lld` shows the word and a condition names the cause.
async fn wait_for_cause(llava: &Installed, trouble: &Trouble) -> anyhow::Result<()> {
    let Trouble {
        name, words, cause, ..
    } = trouble;
    let what = format!("the status of {name} to say one of {words:?} and name {cause}");
    let told = wait_for(&what, SOON, async || {
        let row = llava.kubectl(&["get", "lld", name, "--no-headers"]).await;
        let row = row.ok()?;
        let mut columns = row.split_whitespace();
        columns.find(|column| words.contains(column))?;
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
