//! When workers cannot come up, `kubectl get lld` says why in a word and in a
//! condition in full, and they come up once the cause is mended.

use std::time::Duration;

use crds::LlavaDeployment;
use crds::source::{PersistentVolumeClaim, Source};
use tests::cluster::wait_for;
use tests::install::{Installed, PATIENCE, llava_shapes};

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
        let mut took = Vec::new();
        // A busy machine may be late once.
        for name in [trouble.name.to_owned(), format!("{}-again", trouble.name)] {
            let mut bad = good.clone();
            bad.metadata.name = Some(name.clone());
            bad.spec.replicas = Some(1);
            let mut mended = bad.clone();
            (trouble.spoil)(&mut bad);
            llava.apply(&bad).await?;
            let begin = shell::clock::now();
            wait_for_cause(&llava, &name, &trouble).await?;
            took.push(shell::clock::now().saturating_duration_since(begin));
            wait_for_word(&llava, &name, &trouble).await?;
            mended.spec.model.name = Some(name.clone());
            llava.apply(&mended).await?;
            llava.wait_ready(&name, 1).await?;
            if took.iter().any(|took| *took < SOON) {
                break;
            }
        }
        let soon = took.iter().any(|took| *took < SOON);
        anyhow::ensure!(soon, "{} told its cause after {took:?}", trouble.name);
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

/// Waits until the status says one of the words and a condition names the cause.
async fn wait_for_cause(llava: &Installed, name: &str, trouble: &Trouble) -> anyhow::Result<()> {
    let Trouble { words, cause, .. } = trouble;
    let what = format!("the status of {name} to say one of {words:?} and name {cause}");
    let told = wait_for(&what, PATIENCE, async || {
        let deployment = llava.api::<LlavaDeployment>().get(name).await.ok()?;
        let status = deployment.status?;
        if !words.contains(&status.summary?.as_str()) {
            return None;
        }
        status
            .conditions
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

/// Waits until `kubectl get lld` shows one of the words.
async fn wait_for_word(llava: &Installed, name: &str, trouble: &Trouble) -> anyhow::Result<()> {
    let what = format!("kubectl to show one of {:?} for {name}", trouble.words);
    wait_for(&what, PATIENCE, async || {
        let row = llava.kubectl(&["get", "lld", name, "--no-headers"]).await;
        let row = row.ok()?;
        let mut columns = row.split_whitespace();
        columns
            .find(|column| trouble.words.contains(column))
            .map(|_| ())
    })
    .await?;
    Ok(())
}
