//! Measures the operator beside Kubernetes' own controllers, on one cluster of
//! fake nodes: as many LlavaDeployments as Deployments, of as many workers each.
//! `make bench-operator` runs it; `docs/benchmarks.md` shows what it printed.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use crds::worker::LlavaWorkerSpec;
use crds::{LlavaDeployment, LlavaWorker};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, PodSpec};
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, Resource};
use llava_operator::deployment::check::check;
use llava_operator::worker::pod::pod;
use serde::de::DeserializeOwned;
use serde_json::json;
use tests::Cluster;
use tests::operator::{deployment, settings};

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
    /// Show what everybody asked the API server for, too
    #[arg(long)]
    server: bool,
}

/// Where the operator shows its metrics.
const ADMIN: &str = "127.0.0.1:29090";
const DEADLINE: Duration = Duration::from_secs(300);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    shell::tls::install_provider();
    let args = Args::parse();
    let total = args.deployments * args.workers;
    // Both kinds' Pods are there together, and a fake node takes 250.
    let nodes = u16::try_from(total / 100 + 2)?;
    // As in a cluster that has run for a while, the garbage collector knows our kinds: it would
    // otherwise find them in the middle of a measurement.
    let cluster = Cluster::control_plane()
        .with_kinds()
        .with_fake_nodes(nodes)
        .await?;
    let client = cluster.client();
    for name in ["plain", "llava"] {
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
        Api::all(client.clone())
            .create(&PostParams::default(), &namespace)
            .await?;
    }
    let programs = &cluster.endpoint().programs;
    let program = |name: &str| {
        let mut programs = programs.iter();
        let found = programs.find(|(program, _)| program.contains(name));
        Ok::<_, anyhow::Error>(found.with_context(|| format!("no {name}"))?.1)
    };
    let (manager, server) = (program("controller-manager")?, program("apiserver")?);

    println!(
        "{} deployments of {} workers each\n",
        args.deployments, args.workers
    );
    println!(
        "| who | all Ready after | processor time | peak memory | the API server's processor time meanwhile |"
    );
    println!("|---|---|---|---|---|");
    let (before, load) = (usage(manager)?, usage(server)?);
    let begin = shell::clock::now();
    create_plain(&client, &args).await?;
    let plain = all_ready::<Deployment>(&client, "plain", &args, begin).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (after, loaded) = (usage(manager)?, usage(server)?);
    row(
        "kube-controller-manager",
        plain,
        &before,
        &after,
        loaded.cpu - load.cpu,
    );

    let operator = Operator::start(&args.operator, cluster.kubeconfig())?;
    let answers = async || metrics().await.ok();
    tests::cluster::wait_for("the operator's metrics", DEADLINE, answers).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (before, load) = (usage(operator.pid())?, usage(server)?);
    let server_before = server_calls(&client).await?;
    let begin = shell::clock::now();
    create_ours(&client, &args).await?;
    let ours = all_ready::<LlavaDeployment>(&client, "llava", &args, begin).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (after, loaded) = (usage(operator.pid())?, usage(server)?);
    row(
        "llava-operator",
        ours,
        &before,
        &after,
        loaded.cpu - load.cpu,
    );

    let text = metrics().await?;
    println!("\n| from an event to the answer to the first write, 99 of 100 | within |\n|---|---|");
    for kind in ["LlavaDeployment", "LlavaWorker"] {
        println!("| {kind} | {} |", reaction(&text, kind));
    }
    println!(
        "\n| the operator's writes until all were Ready | number | per worker |\n|---|---|---|"
    );
    for (what, count) in writes_by_kind(&text) {
        println!("| {what} | {count} | {:.2} |", ratio(count, total));
    }
    let sum = writes(&text);
    println!("| all | {sum} | {:.2} |", ratio(sum, total));
    println!("\n| reconciliations until then | number | per worker |\n|---|---|---|");
    for (kind, count) in samples(&text, "llava_operator_reconciles_total{", &["kind"]) {
        println!("| {kind} | {count} | {:.2} |", ratio(count, total));
    }
    for (kind, count) in samples(&text, "llava_operator_stale_syncs_total{", &["kind"]) {
        println!("| {kind}, put off | {count} | {:.2} |", ratio(count, total));
    }
    if args.server {
        println!(
            "\n| what the API server was asked for meanwhile, by everybody | number |\n|---|---|"
        );
        for (what, count) in server_calls(&client).await? {
            let count = count - server_before.get(&what).copied().unwrap_or_default();
            if count > total as u64 / 20 {
                println!("| {what} | {count} |");
            }
        }
    }

    println!("\n| at rest | |\n|---|---|");
    let before = writes(&metrics().await?);
    tokio::time::sleep(Duration::from_secs(args.rest)).await;
    let written = writes(&metrics().await?) - before;
    println!("| writes in {} s | {written} |", args.rest);
    println!(
        "| memory | {} MiB |",
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
    let pod = &worker_pod()?;
    stream::iter(0..args.deployments)
        .map(async |number| {
            let name = format!("plain-{number}");
            let labels = json!({"app": name});
            let object: Deployment = serde_json::from_value(json!({
                "metadata": {"name": name},
                "spec": {
                    "replicas": args.workers, "selector": {"matchLabels": labels},
                    "template": {"metadata": {"labels": labels}, "spec": pod},
                },
            }))?;
            api.create(&PostParams::default(), &object).await?;
            anyhow::Ok(())
        })
        .buffer_unordered(8)
        .try_collect()
        .await
}

/// What the operator makes of a worker, so that both halves run the same Pods: much of what a
/// Pod costs the API server goes by its size.
fn worker_pod() -> anyhow::Result<PodSpec> {
    let ours = deployment("plain", json!({"serviceAccountName": "default"}))?;
    let template = check(&ours, &settings(None))?.template;
    let worker = LlavaWorker::new(
        "plain",
        LlavaWorkerSpec {
            deployment: "plain".to_owned(),
            revision: "plain".to_owned(),
            template,
        },
    );
    let spec = pod(&worker)?.spec.context("a Pod without a spec")?;
    // Those two name a worker.
    Ok(PodSpec {
        hostname: None,
        subdomain: None,
        ..spec
    })
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

/// What both kinds say of themselves.
trait Counted {
    /// Workers that answer.
    fn ready(&self) -> i32;
}

impl Counted for Deployment {
    fn ready(&self) -> i32 {
        let status = self.status.as_ref();
        status
            .and_then(|status| status.ready_replicas)
            .unwrap_or_default()
    }
}

impl Counted for LlavaDeployment {
    fn ready(&self) -> i32 {
        self.status
            .as_ref()
            .map_or(0, |status| status.ready_replicas)
    }
}

/// Seconds until every deployment says that its workers are ready.
async fn all_ready<K>(
    client: &Client,
    namespace: &str,
    args: &Args,
    begin: Instant,
) -> anyhow::Result<f64>
where
    K: Counted + Clone + Debug + DeserializeOwned,
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let wish = i32::try_from(args.workers)?;
    loop {
        // From the API server's memory, so that measuring costs little.
        let all = api.list(&ListParams::default().match_any()).await?;
        let count = all.iter().filter(|one| one.ready() == wish).count();
        let took = shell::clock::now().saturating_duration_since(begin);
        if count >= args.deployments {
            return Ok(took.as_secs_f64());
        }
        anyhow::ensure!(
            took < DEADLINE,
            "{count} of {} deployments are ready after {took:?}",
            args.deployments
        );
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

fn row(name: &str, seconds: f64, before: &Usage, after: &Usage, server: f64) {
    println!(
        "| {name} | {seconds:.1} s | {:.1} s | {} MiB | {server:.1} s |",
        after.cpu - before.cpu,
        after.peak / 1024
    );
}

fn ratio(count: u64, total: usize) -> f64 {
    // Far below where a float loses whole numbers.
    #[expect(clippy::cast_precision_loss, reason = "both are small")]
    let ratio = count as f64 / total as f64;
    ratio
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
    writes_by_kind(metrics).values().sum()
}

/// The operator's writes, such as `create Pod`.
fn writes_by_kind(metrics: &str) -> BTreeMap<String, u64> {
    samples(metrics, "llava_operator_writes_total{", &["verb", "kind"])
}

/// What the API server was asked for, such as `POST pods`.
async fn server_calls(client: &Client) -> anyhow::Result<BTreeMap<String, u64>> {
    let request = http::Request::get("/metrics").body(Vec::new())?;
    let text = client.request_text(request).await?;
    let labels = ["verb", "resource", "subresource"];
    let mut all = samples(&text, "apiserver_request_total{", &labels);
    all.retain(|what, _| !what.starts_with("WATCH"));
    Ok(all)
}

/// Samples of one metric, summed by some of their labels.
fn samples(metrics: &str, metric: &str, labels: &[&str]) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for line in metrics.lines().filter(|line| line.starts_with(metric)) {
        let value = |label: &&str| {
            let found = line.split(&format!("{label}=\"")).nth(1)?;
            found.split('"').next().filter(|value| !value.is_empty())
        };
        let count = line
            .rsplit(' ')
            .next()
            .and_then(|text| text.parse::<f64>().ok());
        let words: Vec<&str> = labels.iter().filter_map(value).collect();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a counter"
        )]
        let count = count.unwrap_or_default() as u64;
        *all.entry(words.join(" ")).or_insert(0) += count;
    }
    all
}

/// The upper edge of the bucket that holds the 99th percentile.
fn reaction(metrics: &str, kind: &str) -> String {
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
    let found = buckets.iter().find(|(_, count)| *count >= all * 0.99);
    let edge = found.and_then(|(edge, _)| edge.parse::<f64>().ok());
    edge.map_or_else(
        || "longer than measured".to_owned(),
        |edge| format!("{edge:.2} s"),
    )
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
