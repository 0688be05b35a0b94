//! The commands of the README and of docs/ do what they are there for, when a
//! reader runs them from top to bottom.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use tests::cluster::{Cluster, Parts, run};
use tests::install::{Installed, NAMESPACE, llava_shapes, loaded_cluster, root};
use tokio::process::Command;

/// In this order: the last one leaves the router asking for keys.
const TASKS: [&str; 9] = [
    "tasks/ask",
    "tasks/scale",
    "tasks/update",
    "tasks/models",
    "troubleshooting",
    "security",
    "tasks/monitor",
    "tasks/expose",
    "tasks/secure",
];

/// Pages about the system itself, with the headings that are followed.
const WAYS: [(&str, &[&str]); 4] = [
    ("README.md", &["A first request"]),
    ("docs/install.md", &["Upgrade", "Uninstall"]),
    ("docs/install.md", &["With cluster rights", "Uninstall"]),
    (
        "docs/install.md",
        &["For one namespace, without cluster rights"],
    ),
];

/// What a reader has at hand.
const PREAMBLE: &str = r#"
set -euo pipefail
cd "$CHECKOUT"
export HF_TOKEN=hf_example
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
"#;

#[tokio::test]
async fn commands_of_the_tasks_run() -> anyhow::Result<()> {
    let llava = Installed::start().await?;
    llava.apply(&llava_shapes()?).await?;
    llava.wait_ready("llava-shapes", 2).await?;
    // A page says what to do where the Prometheus operator is.
    for kind in ["ServiceMonitor", "PodMonitor"] {
        llava.cluster().apply(&foreign(kind)).await?;
    }
    let namespace = format!("--namespace={NAMESPACE}");
    let context = ["config", "set-context", "--current", &namespace];
    llava.cluster().kubectl(&context).await?;
    let reader = Reader::of(llava.cluster()).await?;
    for page in TASKS {
        reader.follow(&format!("docs/{page}.md"), &[]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn commands_to_install_upgrade_and_uninstall_run() -> anyhow::Result<()> {
    let cluster = loaded_cluster().await?;
    cluster.kubectl(&["create", "namespace", "team-a"]).await?;
    let reader = Reader::of(&cluster).await?;
    for (page, headings) in WAYS {
        reader.follow(page, headings).await?;
    }
    let installed = ["get", "deployments", "--namespace", "team-a"];
    let deployments = cluster.kubectl(&installed).await?;
    ensure!(deployments.contains("llava-router"), "{deployments}");
    Ok(())
}

/// Someone with a checkout, a cluster and the usual programs.
struct Reader<'a> {
    cluster: &'a Cluster,
    checkout: tempfile::TempDir,
    home: tempfile::TempDir,
    wheels: PathBuf,
    path: std::ffi::OsString,
}

impl<'a> Reader<'a> {
    async fn of(cluster: &'a Cluster) -> anyhow::Result<Self> {
        // What the commands write stays beside the sources, not among them.
        let checkout = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        for entry in std::fs::read_dir(root())? {
            let entry = entry?;
            let source = std::path::absolute(entry.path())?;
            std::os::unix::fs::symlink(source, checkout.path().join(entry.file_name()))?;
        }
        let parts = Parts::of(&["control-plane", "charts"]).await?;
        let tools = ["kubectl", "helm"].map(|tool| parts.path(tool));
        let tools = tools.iter().filter_map(|tool| tool.parent());
        let own = tools.map(Path::to_owned);
        let system = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(own.chain(std::env::split_paths(&system)))?;
        Ok(Self {
            cluster,
            checkout,
            home: tempfile::tempdir()?,
            wheels: wheels().await?,
            path,
        })
    }

    /// Runs the commands of a page, under these headings or all of them.
    async fn follow(&self, page: &str, headings: &[&str]) -> anyhow::Result<()> {
        // In the cluster's own network, so that forwarded ports meet nobody.
        let mut bash = self.cluster.inside("bash");
        bash.args(["-c", &script(page, headings)?])
            .env("CHECKOUT", self.checkout.path())
            .env("HOME", self.home.path())
            .env("PIP_NO_INDEX", "1")
            .env("PIP_FIND_LINKS", &self.wheels)
            .env("PATH", &self.path)
            .envs(self.cluster.environment());
        run(&mut bash)
            .await
            .with_context(|| format!("{page} {headings:?}"))?;
        Ok(())
    }
}

/// Where pip finds the SDK: the cluster's network has no way out.
/// Tests that want it at the same time wait for the one that fetches it.
async fn wheels() -> anyhow::Result<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("wheels-openai-3.52.0");
    let complete = folder.join("complete");
    let fetching = std::fs::File::create(folder.with_extension("lock"))?;
    let fetching =
        tokio::task::spawn_blocking(move || fetching.lock().map(|()| fetching)).await??;
    if !complete.exists() {
        let venv = tempfile::tempdir()?;
        run(Command::new("python3")
            .args(["-m", "venv"])
            .arg(venv.path()))
        .await?;
        let mut pip = Command::new(venv.path().join("bin/pip"));
        pip.args(["download", "--quiet", "openai==3.52.0", "--dest"]);
        run(pip.arg(&folder)).await?;
        std::fs::write(complete, "")?;
    }
    drop(fetching);
    Ok(folder)
}

/// The commands of a page under `headings`, or all of them, one after the other.
fn script(page: &str, headings: &[&str]) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(root().join(page))?;
    // The reader's registry is the one whose images the node has.
    let text = text.replace("registry.example.com/llava", "ghcr.io/llava-operator");
    let mut script = PREAMBLE.to_owned();
    let sections = text.split("\n## ");
    let chosen = sections.filter(|section| {
        let heading = section.lines().next().unwrap_or_default();
        headings.is_empty() || headings.contains(&heading)
    });
    let mut found = 0;
    for section in chosen {
        found += 1;
        for block in section.split("\n```sh\n").skip(1) {
            let (commands, _) = block.split_once("\n```").context("an open block")?;
            writeln!(script, "{commands}")?;
        }
    }
    ensure!(found >= headings.len(), "{page} lacks one of {headings:?}");
    ensure!(script.len() > PREAMBLE.len(), "{page} has no commands");
    Ok(script)
}

/// A kind that takes anything.
fn foreign(kind: &str) -> String {
    let plural = format!("{}s", kind.to_lowercase());
    serde_json::json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.monitoring.coreos.com")},
        "spec": {
            "group": "monitoring.coreos.com",
            "names": {"kind": kind, "plural": plural},
            "scope": "Namespaced",
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            }],
        },
    })
    .to_string()
}
