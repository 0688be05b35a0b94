//! The test cluster for people (`up`, `down`, `kubectl`), and the supervisor
//! behind every cluster (`serve`).

use std::{
    io::{BufRead, BufReader, Write},
    process::ExitCode,
};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use tests::cluster::{
    self, Endpoint, Parts, Place, Report, Supervisor, Wish, places, supervisor_command, wait_for,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

/// A real Kubernetes on this machine.
#[derive(Debug, Parser)]
struct Arguments {
    /// Which of the clusters that stay.
    #[arg(long, default_value = "local", global = true)]
    name: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start a cluster that stays, and print what runs where.
    Up(Size),
    /// End it, and clear up after dead ones.
    Down,
    /// Run kubectl on it.
    Kubectl {
        /// Its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Print the path of its kubeconfig.
    Kubeconfig,
    /// Load image archives into its node.
    Load {
        /// The archives.
        archives: Vec<std::path::PathBuf>,
    },
    /// Run a cluster until standard input closes; for tests.
    #[command(hide = true)]
    Serve {
        #[command(flatten)]
        size: Size,
        /// Run until a signal instead, under this name.
        #[arg(long)]
        kept: Option<String>,
    },
}

#[derive(Clone, Copy, Debug, clap::Args)]
struct Size {
    /// How many nodes without containers.
    #[arg(long, default_value_t = 0)]
    fake_nodes: u16,
    /// Whether to have a node with real containers.
    #[arg(long)]
    real_node: bool,
    /// Whether LlavaDeployments and LlavaWorkers are known from the start.
    #[arg(long)]
    kinds: bool,
}

impl Size {
    fn wish(self, kept: Option<String>) -> Wish {
        Wish {
            fake_nodes: self.fake_nodes,
            real_node: self.real_node,
            kinds: self.kinds,
            kept,
        }
    }
}

// One thread: the kernel ties the life of the namespaces to the thread that made
// them, and this one lives as long as the process.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    let Arguments { name, verb } = Arguments::parse();
    match verb {
        Verb::Up(size) => up(name, size).await?,
        Verb::Down => down(&name).await?,
        Verb::Kubectl { words } => return kubectl(&the_kept(&name)?, &words).await,
        Verb::Kubeconfig => println!("{}", kubeconfig(&the_kept(&name)?).display()),
        Verb::Load { archives } => load(&the_kept(&name)?, &archives).await?,
        // Its reader of standard input may still sit in a read.
        Verb::Serve { size, kept } => std::process::exit(serve(size.wish(kept)).await),
    }
    Ok(ExitCode::SUCCESS)
}

fn kept(name: &str) -> Option<Place> {
    places().into_iter().find(|place| {
        place
            .owner()
            .is_some_and(|owner| owner.kept.as_deref() == Some(name) && owner.supervisor.is_alive())
    })
}

fn the_kept(name: &str) -> anyhow::Result<Place> {
    kept(name).with_context(|| {
        format!("no cluster `{name}` is up: start it with `make cluster-up CLUSTER_NAME={name}`")
    })
}

fn kubeconfig(place: &Place) -> std::path::PathBuf {
    place.folder().join("admin.kubeconfig")
}

async fn up(name: String, size: Size) -> anyhow::Result<()> {
    if let Some(place) = kept(&name) {
        bail!(
            "cluster `{name}` is up in {}: end it with `make cluster-down CLUSTER_NAME={name}`, or give another CLUSTER_NAME",
            place.folder().display()
        );
    }
    let wish = size.wish(Some(name.clone()));
    Parts::build_visibly(&wish.levels()).await?;
    let began = shell::clock::now();
    // It outlives this process: whoever reads what this prints must see its end.
    let mut child = supervisor_command(&wish)
        .stderr(std::process::Stdio::null())
        .spawn()
        .context("start the supervisor")?;
    let mut line = String::new();
    let stdout = child.stdout.take().context("the supervisor's output")?;
    BufReader::new(stdout)
        .read_line(&mut line)
        .context("read from the supervisor")?;
    match serde_json::from_str(&line).context("the supervisor ended without a word")? {
        Report::Ready(endpoint) => {
            print(&endpoint, &name);
            println!("\nstarted in {:.1} s", began.elapsed().as_secs_f64());
        }
        Report::Done => {}
        Report::Failed(why) => bail!(why),
    }
    Ok(())
}

fn print(endpoint: &Endpoint, name: &str) {
    println!("API server   https://{}:6443", endpoint.node);
    println!("kubeconfig   {}", endpoint.kubeconfig.display());
    println!("logs         {}/logs", endpoint.folder.display());
    println!(
        "namespaces   of process {} (sudo nsenter -t {0} -a)",
        endpoint.holder
    );
    println!(
        "network      {} is the node; Pods and Services are reachable from here",
        endpoint.node
    );
    for (program, pid) in &endpoint.programs {
        println!("{program:<24} process {pid}");
    }
    let name = match name {
        "local" => String::new(),
        name => format!(" CLUSTER_NAME={name}"),
    };
    println!("\nmake kubectl{name} ARGS='get nodes'     make cluster-down{name}");
}

async fn down(name: &str) -> anyhow::Result<()> {
    if let Some(place) = kept(name) {
        let supervisor = place.owner().context("its owner is unknown")?.supervisor;
        let mut kill = tokio::process::Command::new("kill");
        cluster::run(kill.arg(supervisor.pid().to_string())).await?;
        let within = std::time::Duration::from_secs(60);
        wait_for("the supervisor's end", within, async || {
            (!supervisor.is_alive()).then_some(())
        })
        .await?;
    }
    cluster::clear_dead().await?;
    Ok(())
}

async fn kubectl(place: &Place, words: &[String]) -> anyhow::Result<ExitCode> {
    let parts = Parts::of(&["control-plane"]).await?;
    let status = tokio::process::Command::new(parts.path("kubectl"))
        .env("KUBECONFIG", kubeconfig(place))
        // What another cluster at this address could do must not be remembered.
        .env("KUBECACHEDIR", place.folder().join("kubectl-cache"))
        .args(words)
        .status()
        .await
        .context("start kubectl")?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(ExitCode::from(code.unwrap_or(1)))
}

async fn load(place: &Place, archives: &[std::path::PathBuf]) -> anyhow::Result<()> {
    let owner = place.owner().context("its owner is unknown")?;
    let holder = owner.holder.context("it has not started")?.pid();
    let parts = Parts::of(&["real-node"]).await?;
    for archive in archives {
        // The cluster's namespaces have a working directory of their own.
        let archive = std::path::absolute(archive).context("find the archive")?;
        cluster::load_image(holder, &parts, &archive).await?;
    }
    Ok(())
}

/// Runs a cluster to its end and returns the exit status.
async fn serve(wish: Wish) -> i32 {
    let mut requests = requests(wish.kept.is_some());
    let mut supervisor = match Supervisor::new(wish).await {
        Ok(supervisor) => supervisor,
        Err(error) => {
            report(&Report::Failed(error.chain()));
            return 1;
        }
    };
    // Nothing is asked before the first report, so a word here is the end.
    let started = tokio::select! {
        started = supervisor.start() => Some(started),
        _ = requests.recv() => None,
    };
    match started {
        Some(Ok(endpoint)) => {
            report(&Report::Ready(endpoint));
            while let Some(line) = requests.recv().await {
                report(&match supervisor.obey(&line).await {
                    Ok(()) => Report::Done,
                    Err(error) => Report::Failed(error.chain()),
                });
            }
        }
        Some(Err(error)) => report(&Report::Failed(error.chain())),
        None => {}
    }
    match supervisor.stop().await {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("cluster: {}", error.chain());
            1
        }
    }
}

/// Lines to obey; it closes when the cluster is to end.
fn requests(kept: bool) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(1);
    // A thread, because no read of a standard input can be called off.
    let (lines, mut read) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if lines.blocking_send(line).is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        let signals = (
            signal(SignalKind::terminate()),
            signal(SignalKind::interrupt()),
        );
        let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
            return;
        };
        loop {
            let line = tokio::select! {
                _ = terminate.recv() => return,
                _ = interrupt.recv() => return,
                line = read.recv(), if !kept => line,
            };
            let Some(line) = line else { return };
            if sender.send(line).await.is_err() {
                return;
            }
        }
    });
    receiver
}

fn report(report: &Report) {
    let line = serde_json::to_string(report).unwrap_or_default();
    let mut stdout = std::io::stdout().lock();
    // Whoever asked may be gone; then its end comes by the closed input.
    let _ = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
}
