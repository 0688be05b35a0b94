//! Measures the main job on a real node: from `kubectl apply` to Available, from a
//! worker's start to its first token, and how fast the router turns away from
//! workers that die, hang or lose their Lease. `make bench-job` runs it;
//! `docs/benchmarks/job.md` shows what it printed.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Parser;
use crds::LlavaDeployment;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams};
use serde::Serialize;
use serde_json::Value;
use tests::ask::Question;
use tests::cluster::{run, wait_for};
use tests::install::{Installed, PATIENCE, example_image, llava_shapes};
use tests::load::Load;

/// Measures the main job on a real node
#[derive(Debug, Parser)]
struct Args {
    /// How often each is measured
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// What was measured, in seconds, one figure a round.
#[derive(Debug, Serialize)]
struct Figures {
    what: &'static str,
    /// The most that it may take.
    wanted: f64,
    seconds: Vec<f64>,
}

const NAME: &str = "llava-shapes";
const WORKERS: i32 = 2;
/// How long after a death a request may still meet it, for this measurement: well
/// beyond what is wanted, and less than the next round.
const AFTERMATH: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let bench = Bench::start(args.rounds).await?;
    let mut all = bench.comes_up().await?;
    bench.installed.apply(&llava_shapes()?).await?;
    all.push(bench.dies().await?);
    all.push(bench.hangs().await?);
    all.push(bench.loses_its_lease().await?);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        print(&all);
    }
    let late = all
        .iter()
        .filter(|figures| figures.median() > figures.wanted);
    anyhow::ensure!(late.count() == 0, "a median is above what is wanted");
    Ok(())
}

impl Figures {
    fn new(what: &'static str, wanted: f64) -> Self {
        let seconds = Vec::new();
        Self {
            what,
            wanted,
            seconds,
        }
    }

    fn add(&mut self, took: Duration) {
        eprintln!("{}: {:.2} s", self.what, took.as_secs_f64());
        self.seconds.push(took.as_secs_f64());
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    fn median(&self) -> f64 {
        let sorted = self.sorted();
        sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

fn print(all: &[Figures]) {
    println!("| what | median s | most s | wanted s |");
    println!("|---|---|---|---|");
    for figures in all {
        let most = figures.sorted().last().copied().unwrap_or(f64::NAN);
        let (what, wanted) = (figures.what, figures.wanted);
        println!(
            "| {what} | {:.2} | {most:.2} | ≤ {wanted} |",
            figures.median()
        );
    }
}

/// A release with the images on its node.
struct Bench {
    installed: Installed,
    rounds: usize,
    question: Question,
}

impl Bench {
    async fn start(rounds: usize) -> anyhow::Result<Self> {
        let installed = Installed::start().await?;
        let question = Question::about(example_image("shapes.png")?, "What is in the image?");
        Ok(Self {
            installed,
            rounds,
            question,
        })
    }

    /// Applied with the images on the node: until Available by its own word, and,
    /// from the start of the first worker's process, until a token came through the router.
    async fn comes_up(&self) -> anyhow::Result<Vec<Figures>> {
        let mut available = Figures::new("from apply to Available, two workers", 10.0);
        let mut token = Figures::new(
            "from a worker's start to its first token through the router",
            5.0,
        );
        for _ in 0..self.rounds {
            let applied = shell::clock::now();
            self.installed.apply(&llava_shapes()?).await?;
            let (answered, ready) = tokio::try_join!(self.first_token(), self.available())?;
            available.add(ready.saturating_duration_since(applied));
            let mut started = Vec::new();
            for worker in self.installed.workers(NAME).await? {
                started.push(self.started(&worker.name_any()).await?);
            }
            let first = started.into_iter().min().context("no worker")?;
            token.add(answered.saturating_duration_since(first));
            self.remove().await?;
        }
        Ok(vec![available, token])
    }

    /// A worker is killed under load: when the last request met it.
    async fn dies(&self) -> anyhow::Result<Figures> {
        let mut figures = Figures::new(
            "from a worker's SIGKILL to the last request that met it",
            1.0,
        );
        for _ in 0..self.rounds {
            let load = self.load().await?;
            let victim = self.victim().await?;
            let mut retries = self.retries().await?;
            let killed = shell::clock::now();
            self.installed.kill(&victim).await?;
            let mut last = killed;
            while killed.elapsed() < AFTERMATH {
                let now = self.retries().await?;
                if now > retries {
                    (retries, last) = (now, shell::clock::now());
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            figures.add(last.saturating_duration_since(killed));
            self.settled(load).await?;
        }
        Ok(figures)
    }

    /// A worker stands still with its connections open: until the router turns away.
    async fn hangs(&self) -> anyhow::Result<Figures> {
        let mut figures =
            Figures::new("from a worker's SIGSTOP to its being out of rotation", 20.0);
        for _ in 0..self.rounds {
            let load = self.load().await?;
            let victim = self.victim().await?;
            let stopped = shell::clock::now();
            self.installed.signal(&victim, "STOP").await?;
            self.out_of_rotation(&victim).await?;
            figures.add(stopped.elapsed());
            self.installed.signal(&victim, "CONT").await?;
            self.settled(load).await?;
        }
        Ok(figures)
    }

    /// A worker answers, but its Lease is not renewed: its node has lost the API server.
    async fn loses_its_lease(&self) -> anyhow::Result<Figures> {
        let mut figures = Figures::new(
            "from a Lease's last chance to its worker's being out of rotation",
            20.0,
        );
        for _ in 0..self.rounds {
            let load = self.load().await?;
            let victim = self.victim().await?;
            let address = self.address(&victim).await?;
            let cut = shell::clock::now();
            self.api_server_for("-I", &address).await?;
            self.out_of_rotation(&victim).await?;
            figures.add(cut.elapsed());
            self.api_server_for("-D", &address).await?;
            self.settled(load).await?;
        }
        Ok(figures)
    }

    async fn load(&self) -> anyhow::Result<Load> {
        self.installed.wait_ready(NAME, WORKERS).await?;
        for worker in self.installed.workers(NAME).await? {
            self.state(&worker.name_any(), |state| state == "good")
                .await?;
        }
        Ok(Load::start(
            &self.installed.asker().await?,
            &self.question,
            4,
        ))
    }

    /// Back to rest; a request that failed would make the figures worthless.
    async fn settled(&self, load: Load) -> anyhow::Result<()> {
        let account = load.stop().await;
        anyhow::ensure!(account.failed.is_empty(), "failed: {:#?}", account.failed);
        Ok(())
    }

    async fn victim(&self) -> anyhow::Result<String> {
        let workers = self.installed.workers(NAME).await?;
        Ok(workers.first().context("no worker")?.name_any())
    }

    async fn address(&self, pod: &str) -> anyhow::Result<String> {
        let pod = self.installed.api::<Pod>().get(pod).await?;
        let status = pod.status.unwrap_or_default();
        status.pod_ip.context("a Pod without an address")
    }

    /// Drops (`-I`) or lets through (`-D`) what a Pod sends to the API server.
    async fn api_server_for(&self, verb: &str, pod: &str) -> anyhow::Result<()> {
        let rule = [
            "INPUT", "-s", pod, "-p", "tcp", "--dport", "6443", "-j", "DROP",
        ];
        run(self
            .installed
            .cluster()
            .inside("iptables")
            .arg(verb)
            .args(rule))
        .await?;
        Ok(())
    }

    async fn first_token(&self) -> anyhow::Result<Instant> {
        let asker = self.installed.asker().await?;
        let answered = wait_for("the first token", PATIENCE, async || {
            let mut first = None;
            let answer = asker.watch(&self.question, |answer| {
                if answer.deltas > 0 {
                    first.get_or_insert_with(shell::clock::now);
                }
            });
            answer.await.ok()?;
            first
        });
        Ok(answered.await?)
    }

    async fn available(&self) -> anyhow::Result<Instant> {
        self.installed.wait_ready(NAME, WORKERS).await?;
        Ok(shell::clock::now())
    }

    /// When the process of a worker began, by the kernel's word: a hundredth of a second.
    async fn started(&self, pod: &str) -> anyhow::Result<Instant> {
        let script = format!(
            "for process in /proc/[0-9]*; do
               if tr '\\0' '\\n' <$process/environ 2>/dev/null | grep -qx POD_NAME={pod}; then
                 cut -d' ' -f22 $process/stat; fi; done; cut -d' ' -f1 /proc/uptime"
        );
        let cluster = self.installed.cluster();
        let text = cluster.inside_output("sh", &["-c", &script]).await?;
        let now = shell::clock::now();
        let mut lines = text.lines();
        let ticks: f64 = lines.next().context("no process")?.trim().parse()?;
        let uptime: f64 = lines.next_back().context("no uptime")?.trim().parse()?;
        let age = Duration::try_from_secs_f64(uptime - ticks / 100.0)?;
        now.checked_sub(age).context("older than the clock")
    }

    async fn remove(&self) -> anyhow::Result<()> {
        let deployments = self.installed.api::<LlavaDeployment>();
        deployments
            .delete(NAME, &DeleteParams::foreground())
            .await?;
        self.installed.wait_workers(NAME, 0).await?;
        wait_for("its end", PATIENCE, async || {
            deployments
                .get_opt(NAME)
                .await
                .ok()?
                .is_none()
                .then_some(())
        })
        .await?;
        Ok(())
    }

    async fn out_of_rotation(&self, worker: &str) -> anyhow::Result<()> {
        self.state(worker, |state| state != "good").await
    }

    /// Waits until the router's table shows a worker in such a state.
    async fn state(&self, worker: &str, wanted: impl Fn(&str) -> bool) -> anyhow::Result<()> {
        let shown = wait_for("the router's word of a worker", PATIENCE, async || {
            let table: Value = serde_json::from_str(&self.admin("workers").await.ok()?).ok()?;
            let pools = table["pools"].as_array()?.iter();
            let mut workers =
                pools.flat_map(|pool| pool["workers"].as_array().into_iter().flatten());
            let found = workers.find(|found| found["name"] == worker);
            // One that is no longer listed is out as well.
            let state = found.map_or(Some("gone"), |found| found["state"].as_str())?;
            wanted(state).then_some(())
        });
        Ok(shown.await?)
    }

    /// Requests that the router had to send to another worker.
    async fn retries(&self) -> anyhow::Result<f64> {
        let text = self.admin("metrics").await?;
        let lines = text
            .lines()
            .filter(|line| line.starts_with("llava_router_retries_total{"));
        Ok(lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum())
    }

    async fn admin(&self, path: &str) -> anyhow::Result<String> {
        let routers = ListParams::default().labels("app.kubernetes.io/name=llava-router");
        let pods = self.installed.api::<Pod>().list(&routers).await?;
        let status = pods.items.first().and_then(|pod| pod.status.as_ref());
        let address = status
            .and_then(|status| status.pod_ip.clone())
            .context("no router")?;
        let url = format!("http://{address}:{}/{path}", protocol::port::ADMIN);
        Ok(reqwest::get(url).await?.text().await?)
    }
}
