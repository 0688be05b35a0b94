//! The programs of the cluster are built once, whoever asks and however often.
//! `crane` stands for all of them: it takes the least time.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use tokio::process::Command;

/// A copy of what says how the programs are built, and an empty cache for it.
struct Scene {
    folder: tempfile::TempDir,
}

impl Scene {
    fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster");
        for file in ["build", "pins"] {
            fs::copy(sources.join(file), folder.path().join(file))?;
        }
        Ok(Self { folder })
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    async fn build(&self) -> anyhow::Result<Output> {
        let mut build = Command::new(self.folder.path().join("build"));
        build
            .arg("registry")
            .env("LLAVA_CLUSTER_CACHE", self.cache());
        Ok(build.output().await?)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// How often the output of all of these says it.
fn said(outputs: &[&Output], words: &str) -> usize {
    let all = outputs.iter();
    all.map(|output| text(&output.stderr).matches(words).count())
        .sum()
}

#[tokio::test]
async fn callers_at_the_same_time_build_a_program_once() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let (first, second) = tokio::try_join!(scene.build(), scene.build())?;
    assert!(first.status.success(), "{}", text(&first.stderr));
    assert_eq!(text(&first.stdout), text(&second.stdout));
    assert_eq!(said(&[&first, &second], "building crane"), 1);
    let folder = PathBuf::from(text(&first.stdout).trim());
    assert!(folder.starts_with(scene.cache()) && folder.join("crane").is_file());

    let again = scene.build().await?;
    assert_eq!(text(&again.stdout), text(&first.stdout));
    assert_eq!(text(&again.stderr), "", "there is nothing to tell");
    Ok(())
}

#[tokio::test]
async fn a_build_that_was_broken_off_is_begun_anew() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let whole = scene.build().await?;
    assert!(whole.status.success(), "{}", text(&whole.stderr));
    let folder = PathBuf::from(text(&whole.stdout).trim());
    let part = folder.with_added_extension("part");
    fs::rename(&folder, &part)?;
    fs::write(part.join("half"), "")?;

    let again = scene.build().await?;
    assert_eq!(text(&again.stdout), text(&whole.stdout));
    assert!(folder.join("crane").is_file());
    assert!(!folder.join("half").exists() && !part.exists());
    Ok(())
}

#[tokio::test]
async fn a_pin_that_cannot_be_built_is_named_and_leaves_what_was_built() -> anyhow::Result<()> {
    let scene = Scene::new()?;
    let pins = scene.folder.path().join("pins");
    let sound = fs::read_to_string(&pins)?;
    let before = scene.build().await?;
    assert!(before.status.success(), "{}", text(&before.stderr));

    let line = sound.lines().find(|line| line.starts_with("crane "));
    let line = line.expect("a pin of crane");
    let version = line.split_whitespace().nth(3).expect("its version");
    fs::write(&pins, sound.replace(version, "v0.0.0-not-there"))?;
    let refused = scene.build().await?;
    assert!(!refused.status.success());
    assert_eq!(said(&[&refused], "building crane"), 1);
    assert_ne!(said(&[&refused], "v0.0.0-not-there"), 0);
    assert_eq!(text(&refused.stdout), "");

    fs::write(&pins, sound)?;
    let after = scene.build().await?;
    assert_eq!(text(&after.stdout), text(&before.stdout));
    assert_eq!(text(&after.stderr), "", "it is still there");
    Ok(())
}
