//! The Helm chart on a real API server: what it renders is accepted, and goes
//! without a trace.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, ensure};
use clap::Parser as _;
use tests::Cluster;
use tests::cluster::{Parts, run, wait_for};
use tests::install::root;
use tests::release::{chart, install};
use tokio::process::Command;

const NAMESPACE: &str = "llava-system";
const SOON: Duration = Duration::from_secs(30);

/// The files of a folder that are YAML, in order.
fn manifests(folder: &str) -> anyhow::Result<Vec<PathBuf>> {
    let entries =
        std::fs::read_dir(root().join(folder)).with_context(|| format!("list {folder}"))?;
    let mut files: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "yaml")
        })
        .collect();
    files.sort();
    ensure!(!files.is_empty(), "{folder} holds no manifests");
    Ok(files)
}

/// Helm's words for each set of values that the chart is tested with.
fn matrix() -> anyhow::Result<Vec<Vec<String>>> {
    let files = manifests("charts/llava-operator/ci")?.into_iter();
    let given = files.map(|file| vec!["--values".to_owned(), file.display().to_string()]);
    Ok([vec![]].into_iter().chain(given).collect())
}

/// Asks the API server whether it would take the manifests, unknown fields refused.
async fn would_take(cluster: &Cluster, manifests: &str) -> anyhow::Result<()> {
    let file = tempfile::NamedTempFile::with_suffix(".yaml")?;
    std::fs::write(file.path(), manifests)?;
    let file = file.path().display().to_string();
    let how = ["--server-side", "--dry-run=server", "--validate=strict"];
    cluster
        .kubectl(&[&["apply", "--filename", &file], &how[..]].concat())
        .await?;
    Ok(())
}

#[tokio::test]
async fn the_api_server_takes_all_that_the_chart_renders_and_every_example() -> anyhow::Result<()> {
    let cluster = Cluster::control_plane().await?;
    cluster.kubectl(&["create", "namespace", NAMESPACE]).await?;
    for values in matrix()? {
        let chart = chart();
        let words = ["template", "llava", &chart, "--namespace", NAMESPACE];
        let values: Vec<_> = values.iter().map(String::as_str).collect();
        let rendered = cluster.helm(&[&words[..], &values].concat()).await?;
        // Kinds of the Prometheus operator, whose CRDs this cluster has not.
        let known: Vec<_> = rendered
            .split("\n---\n")
            .filter(|document| !document.contains("apiVersion: monitoring.coreos.com/v1\n"))
            .collect();
        would_take(&cluster, &known.join("\n---\n"))
            .await
            .with_context(|| format!("values {values:?}"))?;
    }

    let crds = root()
        .join("charts/llava-operator/files/crds")
        .display()
        .to_string();
    cluster
        .kubectl(&["apply", "--server-side", "--filename", &crds])
        .await?;
    let established = [
        "wait",
        "--for=condition=Established",
        "crd",
        "--all",
        "--timeout=30s",
    ];
    cluster.kubectl(&established).await?;
    for file in manifests("examples")? {
        would_take(&cluster, &std::fs::read_to_string(&file)?)
            .await
            .with_context(|| file.display().to_string())?;
    }
    Ok(())
}

#[tokio::test]
async fn each_process_understands_what_the_chart_tells_it() -> anyhow::Result<()> {
    let helm = Parts::of(&["charts"]).await?.path("helm");
    let mut understood = 0;
    for values in matrix()? {
        let words = ["template".to_owned(), "llava".into(), chart()];
        let rendered = run(Command::new(&helm).args(words.iter().chain(&values))).await?;
        for document in rendered.split("\n---\n") {
            let object: serde_json::Value = serde_saphyr::from_str(document)?;
            let pod = match object["kind"].as_str() {
                Some("Deployment") => &object["spec"]["template"]["spec"],
                Some("Pod") => &object["spec"],
                _ => continue,
            };
            let container = &pod["containers"][0];
            let line = container["args"].as_array().context("a command line")?;
            let line = line.iter().filter_map(|word| word.as_str());
            let line = ["program"].into_iter().chain(line);
            let result = match container["name"].as_str() {
                Some("operator") => llava_operator::args::Args::try_parse_from(line).map(drop),
                _ => llava_router::cli::Cli::try_parse_from(line).map(drop),
            };
            result.with_context(|| format!("values {values:?}: {}", object["metadata"]["name"]))?;
            understood += 1;
        }
    }
    // Operator, router and the test, for each set of values.
    assert_eq!(understood, matrix()?.len() * 3);
    Ok(())
}

#[tokio::test]
async fn an_uninstalled_release_leaves_the_crds_and_nothing_else() -> anyhow::Result<()> {
    let cluster = Cluster::control_plane().await?;
    install(&cluster, NAMESPACE, &[]).await?;
    let chart = chart();
    let upgrade = [
        "upgrade",
        "llava",
        &chart,
        "--namespace",
        NAMESPACE,
        "--reuse-values",
    ];
    let closed = [
        "--set",
        "networkPolicy.enabled=true,metrics.dashboards.enabled=true",
    ];
    cluster.helm(&[&upgrade[..], &closed].concat()).await?;
    ensure!(
        everything(&cluster).await?.len() > 20,
        "the release is not there"
    );

    cluster
        .helm(&["uninstall", "llava", "--namespace", NAMESPACE])
        .await?;
    let crds = ["llavadeployments.llava.dev", "llavaworkers.llava.dev"]
        .map(|name| format!("customresourcedefinition.apiextensions.k8s.io/{name}"));
    let mut left = Vec::new();
    let gone = wait_for("only the CRDs are left", SOON, async || {
        left = everything(&cluster).await.ok()?;
        (left == crds).then_some(())
    });
    let gone = gone.await;
    gone.with_context(|| format!("left: {left:?}"))
}

/// All objects of the release by name, its history included.
async fn everything(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let kinds = cluster
        .kubectl(&["api-resources", "--verbs=list", "--output=name"])
        .await?;
    let kinds = kinds.split_whitespace().collect::<Vec<_>>().join(",");
    let get = [
        "get",
        &kinds,
        "--all-namespaces",
        "--ignore-not-found",
        "--output=name",
    ];
    let mut found = Vec::new();
    for selector in ["app.kubernetes.io/instance=llava", "owner=helm,name=llava"] {
        let named = cluster
            .kubectl(&[&get[..], &["--selector", selector]].concat())
            .await?;
        found.extend(named.split_whitespace().map(str::to_owned));
    }
    found.sort();
    found.dedup();
    Ok(found)
}
