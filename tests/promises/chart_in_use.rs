//! The chart beside served models: its own test, and its dashboards.

use std::collections::BTreeSet;

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use tests::ask::Question;
use tests::install::{Installed, NAMESPACE, PATIENCE, example_image, llava_shapes, root};

#[tokio::test]
async fn a_release_tests_itself_by_asking_about_an_image() -> anyhow::Result<()> {
    let llava = Installed::start().await?;
    let test = ["test", "llava", "--namespace", NAMESPACE, "--timeout", "2m"];
    let unserved = llava.cluster().helm(&test).await;
    let complaint = unserved.err().context("a test without a model passed")?;
    ensure!(
        complaint.to_string().contains("no model is served"),
        "{complaint}"
    );

    llava.apply(&llava_shapes()?).await?;
    llava.wait_ready("llava-shapes", 2).await?;
    let passed = llava.cluster().helm(&test).await?;
    ensure!(passed.contains("Succeeded"), "{passed}");
    let left = llava
        .kubectl(&["get", "pods,configmaps", "-o", "name"])
        .await?;
    ensure!(
        !left.contains("llava-router-test"),
        "the test stays: {left}"
    );
    Ok(())
}

/// Shown only after something went wrong, or never on a CPU.
const RARE: [&str; 3] = [
    "llava_operator_reconcile_errors_total",
    "llava_operator_write_errors_total",
    "llava_operator_stale_syncs_total",
];

#[tokio::test]
async fn dashboards_draw_what_is_measured() -> anyhow::Result<()> {
    let llava = Installed::start().await?;
    llava.apply(&llava_shapes()?).await?;
    llava.wait_ready("llava-shapes", 2).await?;
    let asker = llava.asker().await?;
    let question = Question::about(example_image("shapes.png")?, "What is in the image?");
    for _ in 0..4 {
        let answer = asker.stream(&question).await?;
        ensure!(answer.is_whole(), "{answer:?}");
    }

    let measured = measured(&llava).await?;
    let drawn = drawn()?;
    ensure!(drawn.len() > 30, "the dashboards draw little: {drawn:?}");
    let missing: Vec<_> = drawn
        .iter()
        .filter(|name| !measured.contains(*name) && !RARE.contains(&name.as_str()))
        .collect();
    ensure!(missing.is_empty(), "nobody measures {missing:?}");
    Ok(())
}

/// The names of all series that the processes show.
async fn measured(llava: &Installed) -> anyhow::Result<BTreeSet<String>> {
    let http = reqwest::Client::builder().timeout(PATIENCE).build()?;
    let mut names = BTreeSet::new();
    for pod in llava.api::<Pod>().list(&ListParams::default()).await? {
        let address = pod.status.and_then(|status| status.pod_ip);
        let address = address.context("a Pod without an address")?;
        let shown = http
            .get(format!("http://{address}:9090/metrics"))
            .send()
            .await?;
        let shown = shown.error_for_status()?.text().await?;
        let series = shown.lines().filter(|line| !line.starts_with('#'));
        names.extend(series.filter_map(|line| Some(line.split(['{', ' ']).next()?.to_owned())));
    }
    Ok(names)
}

/// The names of all series that the dashboards ask for.
fn drawn() -> anyhow::Result<BTreeSet<String>> {
    let folder = root().join("charts/llava-operator/files/dashboards");
    let mut names = BTreeSet::new();
    for file in std::fs::read_dir(folder)? {
        let board: serde_json::Value = serde_json::from_slice(&std::fs::read(file?.path())?)?;
        let panels = board["panels"]
            .as_array()
            .context("a board without panels")?;
        for target in panels
            .iter()
            .filter_map(|panel| panel["targets"].as_array())
            .flatten()
        {
            let query = target["expr"]
                .as_str()
                .context("a target without a query")?;
            let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            let ours = words
                .filter(|word| word.starts_with("llava_") || word.starts_with("inference_pool_"));
            names.extend(ours.map(str::to_owned));
        }
    }
    Ok(names)
}
