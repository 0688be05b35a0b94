//! Measures the operator beside Kubernetes' own controllers, on one cluster of
//! fake nodes: as many LlavaDeployments as Deployments, of as many workers each.
//! `make bench-operator` runs it; `docs/benchmarks.md` shows what it printed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tests::Cluster;
use tests::operator::{deployment, install_kinds};

/// Measures the operator beside Kubernetes' own controllers
#[derive(Debug, Parser)]
struct Args {
    /// The operator's program
    #[arg(long, default_value = "target/release/llava-operator")]
    operator: PathBuf,
    /// Deployments of each kind
    #[arg(long, default_value_t = 200)]
    deployments: usize,
    /// Workers of each
    #[arg(long, default_value_t = 5)]
    workers: usize,
    /// Seconds at rest in which nothing may be written
    #[arg(long, default_value_t = 120)]
    rest: u64,
}

/// Where the operator shows its metrics.
const ADMIN: &str = "127.0.0.1:29090";
const DEADLINE: Duration = Duration::from_secs(300);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    shell::tls::install_provider();
    let args = Args::parse();
    let total = args.deployments * args.workers;
    let nodes = u16::try_from(total / 200 + 2)?;
    let cluster = Cluster::control_plane().with_fake_nodes(nodes).await?;
    let client = cluster.client();
    install_kinds(&client).await?;
    for name in ["plain", "llava"] {
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        Api::all(client.clone())
            .create(&PostParams::default(), &namespace)
            .await?;
    }
    let programs = &cluster.endpoint().programs;
    let manager = programs
        .iter()
        .find(|(name, _)| name.contains("controller-manager"));
    let manager = manager.context("no controller manager")?.1;

    let before = usage(manager)?;
    let begin = shell::clock::now();
    create_plain(&client, &args).await?;
    let plain = all_ready(&client, "plain", total, begin).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let after = usage(manager)?;
    row(
        "kube-controller-manager",
        plain,
        after.cpu - before.cpu,
        after.peak,
    );

    let operator = Operator::start(&args.operator, cluster.kubeconfig())?;
    let answers = async || metrics().await.ok();
    tests::cluster::wait_for("the operator's metrics", DEADLINE, answers).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = usage(operator.pid())?;
    let begin = shell::clock::now();
    create_ours(&client, &args).await?;
    let ours = all_ready(&client, "llava", total, begin).await?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let after = usage(operator.pid())?;
    row("llava-operator", ours, after.cpu - before.cpu, after.peak);
    let text = metrics().await?;
    println!(
        "| from event to the reconciliation that answers it, p99 | {} |",
        reaction(&text)
    );
    println!("| writes until all were Ready | {} |", writes(&text));

    let before = writes(&text);
    tokio::time::sleep(Duration::from_secs(args.rest)).await;
    println!(
        "| writes in {} s at rest | {} |",
        args.rest,
        writes(&metrics().await?) - before
    );
    println!(
        "| memory at rest | {} MiB |",
        usage(operator.pid())?.resident / 1024
    );
    drop(operator);
    let operator = Operator::start(&args.operator, cluster.kubeconfig())?;
    tests::cluster::wait_for("the operator's metrics", DEADLINE, answers).await?;
    tokio::time::sleep(Duration::from_secs(15)).await;
    println!("| writes after a restart | {} |", writes(&metrics().await?));
    drop(operator);
    Ok(())
}

async fn create_plain(client: &Client, args: &Args) -> anyhow::Result<()> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), "plain");
    stream::iter(0..args.deployments)
        .map(async |number| {
            let name = format!("plain-{number}");
            let labels = json!({"app": name});
            let object: Deployment = serde_json::from_value(json!({
                "metadata": {"name": name},
                "spec": {
                    "replicas": args.workers, "selector": {"matchLabels": labels},
                    "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "main", "image": "main"}]}},
                },
            }))?;
            api.create(&PostParams::default(), &object).await?;
            anyhow::Ok(())
        })
        .buffer_unordered(8)
        .try_collect()
        .await
}

async fn create_ours(client: &Client, args: &Args) -> anyhow::Result<()> {
    let api = Api::namespaced(client.clone(), "llava");
    stream::iter(0..args.deployments)
        .map(async |number| {
            let object = deployment(
                &format!("llava-{number}"),
                json!({"replicas": args.workers}),
            )?;
            api.create(&PostParams::default(), &object).await?;
            anyhow::Ok(())
        })
        .buffer_unordered(8)
        .try_collect()
        .await
}

/// Seconds until so many Pods are ready.
async fn all_ready(
    client: &Client,
    namespace: &str,
    total: usize,
    begin: Instant,
) -> anyhow::Result<f64> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    loop {
        // From the API server's memory, so that measuring costs little.
        let pods = api.list(&ListParams::default().match_any()).await?;
        let ready = |pod: &&Pod| {
            let conditions = pod
                .status
                .as_ref()
                .and_then(|status| status.conditions.as_ref());
            conditions.is_some_and(|all| {
                all.iter()
                    .any(|one| one.type_ == "Ready" && one.status == "True")
            })
        };
        let count = pods.iter().filter(ready).count();
        let took = shell::clock::now().saturating_duration_since(begin);
        if count >= total {
            return Ok(took.as_secs_f64());
        }
        anyhow::ensure!(
            took < DEADLINE,
            "{count} of {total} Pods are ready after {took:?}"
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

fn row(name: &str, seconds: f64, cpu: f64, peak: u64) {
    println!(
        "| {name} | {seconds:.1} s | {cpu:.1} s | {} MiB |",
        peak / 1024
    );
}

/// What a process has used.
struct Usage {
    /// Seconds of processor time.
    cpu: f64,
    /// KiB now.
    resident: u64,
    /// KiB at most.
    peak: u64,
}

fn usage(pid: u32) -> anyhow::Result<Usage> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks = |index: usize| -> anyhow::Result<f64> {
        Ok(fields.get(index).context("a short stat")?.parse()?)
    };
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let memory = |key: &str| -> anyhow::Result<u64> {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .context("a short status")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    };
    Ok(Usage {
        // A hundred ticks a second on every Linux that matters.
        cpu: (ticks(11)? + ticks(12)?) / 100.0,
        resident: memory("VmRSS:")?,
        peak: memory("VmHWM:")?,
    })
}

async fn metrics() -> anyhow::Result<String> {
    Ok(reqwest::get(format!("http://{ADMIN}/metrics"))
        .await?
        .text()
        .await?)
}

fn writes(metrics: &str) -> u64 {
    let lines = metrics
        .lines()
        .filter(|line| line.starts_with("llava_operator_writes_total{"));
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// The upper edge of the bucket that holds the 99th percentile, over both kinds.
fn reaction(metrics: &str) -> String {
    let mut worst = String::from("0");
    for kind in ["LlavaDeployment", "LlavaWorker"] {
        let of_kind = |line: &&str| {
            line.starts_with("llava_operator_reaction_seconds_bucket{")
                && line.contains(&format!("\"{kind}\""))
        };
        let buckets: Vec<(&str, f64)> = metrics
            .lines()
            .filter(of_kind)
            .filter_map(|line| {
                let edge = line.split("le=\"").nth(1)?.split('"').next()?;
                Some((edge, line.rsplit(' ').next()?.parse().ok()?))
            })
            .collect();
        let all = buckets.iter().map(|(_, count)| *count).fold(0.0, f64::max);
        if let Some((edge, _)) = buckets.iter().find(|(_, count)| *count >= all * 0.99) {
            println!("| {kind}: p99 of the wait below | {edge} s |");
            worst = (*edge).to_owned();
        }
    }
    format!("{worst} s")
}

struct Operator(Child);

impl Operator {
    fn start(program: &Path, kubeconfig: &Path) -> anyhow::Result<Self> {
        let child = Command::new(program)
            .args([
                "--no-leader-election",
                "--worker-image=llava-worker:bench",
                "--admin-listen",
                ADMIN,
            ])
            .env("KUBECONFIG", kubeconfig)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(
                std::env::temp_dir().join("bench-operator.log"),
            )?)
            .spawn()
            .with_context(|| {
                format!(
                    "cannot start {}; build it with --release first",
                    program.display()
                )
            })?;
        Ok(Self(child))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        // It is this program's own child; an error says that it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
