//! What people do with a cluster by hand: bring one up that stays, ask it, give it
//! an image, run that, and take it down.

use tests::cluster::{Place, Process, REAL_NODE, places, run};
use tests::install::images;
use tokio::process::Command;

use crate::machine::{Settings, Traces};

/// The cluster of this name, as `make cluster-up` and its like call it.
struct Kept(String);

impl Kept {
    /// With a name of its own. What an earlier run left up when it was killed goes.
    async fn new() -> anyhow::Result<Self> {
        const STEM: &str = "verbs-";
        for owner in places().iter().filter_map(Place::owner) {
            let Some(name) = owner.kept.filter(|name| name.starts_with(STEM)) else {
                continue;
            };
            let process = name[STEM.len()..].parse().ok();
            if process.and_then(Process::of).is_none() {
                Self(name).verb(&["down"]).await?;
            }
        }
        Ok(Self(format!("{STEM}{}", std::process::id())))
    }

    async fn verb(&self, words: &[&str]) -> anyhow::Result<String> {
        let mut cluster = Command::new(env!("CARGO_BIN_EXE_cluster"));
        cluster.args(["--name", &self.0]).args(words);
        // What a person sees is the message.
        cluster.env("RUST_BACKTRACE", "0");
        Ok(run(&mut cluster).await?)
    }

    async fn kubectl(&self, words: &str) -> anyhow::Result<String> {
        let words: Vec<&str> = ["kubectl"].into_iter().chain(words.split(' ')).collect();
        self.verb(&words).await
    }
}

impl Drop for Kept {
    /// What a broken promise leaves up goes, too.
    fn drop(&mut self) {
        let mut down = std::process::Command::new(env!("CARGO_BIN_EXE_cluster"));
        let _ = down.args(["--name", &self.0, "down"]).status();
    }
}

#[tokio::test]
async fn a_cluster_is_brought_up_used_and_taken_down_by_hand() -> anyhow::Result<()> {
    let before = Settings::now().await?;
    let kept = Kept::new().await?;
    let refused = kept.kubectl("get nodes").await.unwrap_err().to_string();
    assert!(refused.contains("make cluster-up"), "{refused}");

    let told = kept.verb(&["up", "--real-node"]).await?;
    for line in ["API server", "kubeconfig", "logs", "kubelet", "started in"] {
        assert!(
            told.lines().any(|it| it.starts_with(line)),
            "{line}: {told}"
        );
    }
    let traces = Traces::of_kept(&kept.0).await?;
    let again = kept.verb(&["up"]).await.unwrap_err().to_string();
    assert!(again.contains("make cluster-down"), "{again}");

    let kubeconfig = kept.verb(&["kubeconfig"]).await?;
    assert!(told.contains(kubeconfig.trim()), "{kubeconfig} in {told}");
    let nodes = kept.kubectl("get nodes --output name").await?;
    assert_eq!(nodes.trim(), format!("node/{REAL_NODE}"));

    let archive = images().join("llava-router.tar");
    kept.verb(&["load", &archive.to_string_lossy()]).await?;
    let image = concat!(
        "ghcr.io/llava-operator/llava-router:",
        env!("CARGO_PKG_VERSION")
    );
    let run = format!("run router --image={image} --image-pull-policy=Never --restart=Never");
    kept.kubectl(&format!("{run} -- --help")).await?;
    let ended = "wait pod/router --for=jsonpath={.status.phase}=Succeeded --timeout=60s";
    kept.kubectl(ended).await?;
    let said = kept.kubectl("logs router").await?;
    assert!(said.contains("--listen"), "{said}");

    kept.verb(&["down"]).await?;
    assert_eq!(traces.found().await?, Vec::<String>::new());
    assert_eq!(Settings::now().await?, before);
    assert!(kept.kubectl("get nodes").await.is_err(), "it is gone");
    Ok(())
}
