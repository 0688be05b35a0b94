//! The commands of docs/tasks do what they are there for, when a reader runs
//! them from top to bottom.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use tests::cluster::{Parts, run};
use tests::install::{Installed, NAMESPACE, llava_shapes, root};
use tokio::process::Command;

/// In this order: the last one leaves the router asking for keys.
const PAGES: [&str; 7] = [
    "ask", "scale", "update", "models", "monitor", "expose", "secure",
];

/// What a reader has at hand, and how long a forwarded port takes to open.
const PREAMBLE: &str = r#"
set -euo pipefail
cd "$SOURCES"
export HF_TOKEN=hf_example
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
opened() { timeout 30 bash -c "until (: </dev/tcp/localhost/$1) 2>/dev/null; do sleep 0.05; done"; }
"#;

#[tokio::test]
async fn documented_commands_run() -> anyhow::Result<()> {
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

    let python = python().await?;
    let parts = Parts::of(&["control-plane", "charts"]).await?;
    let tools = ["kubectl", "helm"].map(|tool| parts.path(tool));
    let tools = tools
        .iter()
        .filter_map(|tool| tool.parent())
        .chain([python.as_path()]);
    let system = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(
        tools
            .map(Path::to_owned)
            .chain(std::env::split_paths(&system)),
    )?;
    for page in PAGES {
        let script = script(page)?;
        // In the cluster's own network, so that forwarded ports meet nobody.
        let mut bash = llava.cluster().inside("bash");
        bash.args(["-c", &script])
            .env("SOURCES", root())
            .env("PATH", &path)
            .env("KUBECONFIG", llava.cluster().kubeconfig());
        run(&mut bash)
            .await
            .with_context(|| format!("docs/tasks/{page}.md"))?;
    }
    Ok(())
}

/// A Python that has the SDK already: the cluster's network has no way out.
async fn python() -> anyhow::Result<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("openai-3.52.0");
    let (bin, complete) = (folder.join("bin"), folder.join("complete"));
    if !complete.exists() {
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder)).await?;
        let install = ["install", "--quiet", "openai==3.52.0"];
        run(Command::new(bin.join("pip")).args(install)).await?;
        std::fs::write(complete, "")?;
    }
    Ok(bin)
}

/// The commands of a page, one after the other.
fn script(page: &str) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(root().join(format!("docs/tasks/{page}.md")))?;
    let mut script = PREAMBLE.to_owned();
    let blocks = text.split("\n```sh\n").skip(1);
    for block in blocks {
        let (commands, _) = block.split_once("\n```").context("an open block")?;
        for line in commands.lines() {
            writeln!(script, "{line}")?;
            if let Some(port) = forwarded(line) {
                writeln!(script, "opened {port}")?;
            }
        }
    }
    ensure!(
        script.len() > PREAMBLE.len(),
        "docs/tasks/{page}.md has no commands"
    );
    Ok(script)
}

/// The local port that a line forwards in the background.
fn forwarded(line: &str) -> Option<&str> {
    let words = line
        .strip_prefix("kubectl port-forward ")?
        .strip_suffix(" &")?;
    words.split(' ').next_back()?.split(':').next()
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
