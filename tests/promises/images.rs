//! Images are small: a node that has none pulls them in a moment.

use anyhow::{Context as _, Result, ensure};
use tests::cluster::{Parts, run};
use tokio::process::Command;

#[test]
fn each_image_is_as_small_as_promised() -> Result<()> {
    let context = tests::install::images().join("context");
    let size = |file: &str| -> Result<u64> {
        let path = context.join(file);
        let found = path.metadata();
        let found = found.with_context(|| format!("{}: run make images", path.display()))?;
        Ok(found.len())
    };
    let roots = size("ca-certificates.crt")?;
    for (program, megabytes) in [
        ("llava-operator", 20),
        ("llava-router", 20),
        ("llava-worker", 60),
    ] {
        let unpacked = size(program)? + roots;
        assert!(
            unpacked <= megabytes * 1_000_000,
            "{program} takes {unpacked} bytes unpacked, more than {megabytes} MB"
        );
    }
    Ok(())
}

/// `crane push` reads what `crane validate` reads.
#[tokio::test]
async fn crane_takes_each_archive_as_it_is() -> Result<()> {
    let crane = Parts::of(&["registry"]).await?.path("crane");
    for image in [
        "llava-operator",
        "llava-router",
        "llava-worker",
        "llava-shapes",
    ] {
        let archive = tests::install::images().join(format!("{image}.tar"));
        let said = run(Command::new(&crane)
            .args(["validate", "--tarball"])
            .arg(&archive))
        .await?;
        ensure!(said.contains("PASS"), "{image}: {said}");
    }
    Ok(())
}
