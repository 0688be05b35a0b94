//! A real Kubernetes for one test, started in seconds and gone with the value.
//!
//! ```no_run
//! # async fn promise() -> Result<(), tests::cluster::Error> {
//! use tests::Cluster;
//! let cluster = Cluster::control_plane().with_fake_nodes(3).await?;
//! let client = cluster.client();
//! # drop(client);
//! # Ok(()) }
//! ```

mod cgroup;
mod client;
mod command;
mod error;
mod fake;
mod kinds;
mod namespaces;
mod network;
mod parts;
mod place;
mod program;
mod site;
mod supervisor;

use std::{
    fmt,
    future::IntoFuture,
    io::{BufRead, BufReader, Write},
    net::Ipv4Addr,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    pin::Pin,
    process::{Child, ChildStdin, ChildStdout, Stdio},
};

use kube::{Client, client::ClientBuilder};
use serde::{Deserialize, Serialize};
use tokio::{process::Command, sync::Mutex};

use crate::fault::Faults;

pub use cgroup::Cgroup;
use command::feed;
pub use command::{run, wait_for};
pub use error::Error;
pub use fake::node_name as fake_node;
pub use kinds::install_kinds;
pub use namespaces::load_image;
pub use parts::Parts;
pub use place::{Place, Process, all as places, clear_dead};
pub use program::{Program, REAL_NODE};
pub use supervisor::{Endpoint, Supervisor, Wish};

/// A line from the supervisor to whoever started it.
#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    /// The cluster is usable.
    Ready(Endpoint),
    /// What was asked is done.
    Done,
    /// It is not, and why.
    Failed(String),
}

/// What a cluster is to have; awaiting it starts the cluster.
#[derive(Clone, Debug)]
#[must_use = "a cluster starts when this is awaited"]
pub struct Builder {
    wish: Wish,
}

impl Builder {
    /// Adds nodes without containers: Pods run there as far as the API shows.
    pub fn with_fake_nodes(mut self, nodes: u16) -> Self {
        self.wish.fake_nodes = nodes;
        self
    }

    /// Adds both kinds of ours, so early that all of Kubernetes knows them.
    pub fn with_kinds(mut self) -> Self {
        self.wish.kinds = true;
        self
    }

    /// Adds a node that runs real containers, with Services, names and NetworkPolicies.
    pub fn with_real_node(mut self) -> Self {
        self.wish.real_node = true;
        self
    }
}

impl IntoFuture for Builder {
    type Output = Result<Cluster, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(Cluster::start(self.wish))
    }
}

/// A running cluster. Dropping it, also by a panic, ends and removes it; so does
/// the death of this process.
pub struct Cluster {
    client: Client,
    endpoint: Endpoint,
    parts: Parts,
    /// Dropped last: the supervisor ends.
    supervisor: Mutex<Link>,
}

impl Cluster {
    /// etcd, API server, controllers and scheduler.
    pub fn control_plane() -> Builder {
        Builder {
            wish: Wish::default(),
        }
    }

    async fn start(wish: Wish) -> Result<Self, Error> {
        let parts =
            Parts::of(&["control-plane", "real-node"][..1 + usize::from(wish.real_node)]).await?;
        let mut link = Link::start(&wish)?;
        let endpoint = match link.answer().await? {
            Report::Ready(endpoint) => endpoint,
            Report::Done => return Err(Error::Supervisor("it is not ready".into())),
            Report::Failed(why) => return Err(Error::Supervisor(why)),
        };
        let client = client::connect(&endpoint.kubeconfig).await?;
        Ok(Self {
            client,
            endpoint,
            parts,
            supervisor: Mutex::new(link),
        })
    }

    /// A client with every right.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// A client with the rights of a token.
    ///
    /// # Errors
    /// When the kubeconfig cannot be read.
    pub async fn client_as(&self, token: &str) -> Result<Client, Error> {
        client::connect_as(&self.endpoint.kubeconfig, Some(token)).await
    }

    /// A client with every right whose calls meet these faults.
    ///
    /// # Errors
    /// When the kubeconfig cannot be read.
    pub async fn client_with(&self, faults: &Faults) -> Result<Client, Error> {
        let config = client::config(&self.endpoint.kubeconfig, None).await?;
        let client = ClientBuilder::try_from(config).map_err(Error::api("make a faulty client"))?;
        Ok(client.with_layer(faults).build())
    }

    /// A kubeconfig with every right.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.endpoint.kubeconfig
    }

    /// Where the API server answers (port 6443), and NodePorts and host ports
    /// of the real node. Addresses of Pods and Services are reachable from this
    /// machine too.
    #[must_use]
    pub fn node_address(&self) -> Ipv4Addr {
        self.endpoint.node
    }

    /// Everything else there is to know.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Runs kubectl and returns what it printed.
    ///
    /// # Errors
    /// When it ends with another status than 0.
    pub async fn kubectl(&self, words: &[&str]) -> Result<String, Error> {
        run(self.tool("kubectl").args(words)).await
    }

    /// Applies manifests, YAML or JSON, and returns what kubectl said.
    ///
    /// # Errors
    /// When the API server refuses one of them.
    pub async fn apply(&self, manifests: &str) -> Result<String, Error> {
        let mut kubectl = self.tool("kubectl");
        feed(kubectl.args(["apply", "--filename=-"]), manifests).await
    }

    /// Runs helm and returns what it printed.
    ///
    /// # Errors
    /// When it ends with another status than 0.
    pub async fn helm(&self, words: &[&str]) -> Result<String, Error> {
        let charts = Parts::of(&["charts"]).await?;
        let mut helm = Command::new(charts.path("helm"));
        run(helm.envs(self.environment()).args(words)).await
    }

    /// What kubectl and helm must find in their environment to speak to this cluster:
    /// its kubeconfig, and a cache of its own, since they keep what a server can do by
    /// the server's address, and another cluster may have had this one's.
    #[must_use]
    pub fn environment(&self) -> [(&'static str, PathBuf); 2] {
        [
            ("KUBECONFIG", self.endpoint.kubeconfig.clone()),
            ("KUBECACHEDIR", self.endpoint.folder.join("kubectl-cache")),
        ]
    }

    fn tool(&self, name: &str) -> Command {
        let mut tool = Command::new(self.parts.path(name));
        tool.envs(self.environment());
        tool
    }

    /// Loads an image archive into the real node. Pods then name it by the tag
    /// in the archive, with `imagePullPolicy: Never` or `IfNotPresent`.
    ///
    /// # Errors
    /// When the archive cannot be read, or there is no real node.
    pub async fn load_image(&self, archive: &Path) -> Result<(), Error> {
        load_image(self.endpoint.holder, &self.parts, archive).await
    }

    /// Loses a fake node, as by a power cut that lasts: its Pods are no longer
    /// ready, it is tainted, and no Pod on it can end. Kubernetes moves Pods away
    /// only while another node is left.
    ///
    /// # Errors
    /// When there is no such node.
    pub async fn lose_node(&self, name: &str) -> Result<(), Error> {
        fake::lose_node(&self.client, name).await
    }

    /// A command that runs inside the namespaces of the cluster.
    #[must_use]
    pub fn inside(&self, program: impl AsRef<Path>) -> Command {
        namespaces::enter(self.endpoint.holder, program.as_ref())
    }

    /// What a command inside the namespaces of the cluster prints.
    ///
    /// # Errors
    /// When it ends with another status than 0.
    pub async fn inside_output(&self, program: &str, words: &[&str]) -> Result<String, Error> {
        run(self.inside(program).args(words)).await
    }

    /// The log of a program so far.
    #[must_use]
    pub fn log(&self, program: Program) -> String {
        let path = self
            .endpoint
            .folder
            .join("logs")
            .join(format!("{program}.log"));
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// Kills a program, as a crash would.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn kill(&self, program: Program) -> Result<(), Error> {
        self.ask(&format!("KILL {program}")).await
    }

    /// Starts a program again that was killed.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn restart(&self, program: Program) -> Result<(), Error> {
        self.ask(&format!("start {program}")).await
    }

    /// Stops a program in its tracks, connections open, as a hung machine would.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn freeze(&self, program: Program) -> Result<(), Error> {
        self.ask(&format!("STOP {program}")).await
    }

    /// Lets a frozen program go on.
    ///
    /// # Errors
    /// When it does not run.
    pub async fn thaw(&self, program: Program) -> Result<(), Error> {
        self.ask(&format!("CONT {program}")).await
    }

    async fn ask(&self, line: &str) -> Result<(), Error> {
        let mut link = self.supervisor.lock().await;
        link.say(line)?;
        match link.answer().await? {
            Report::Failed(why) => Err(Error::Supervisor(why)),
            Report::Ready(_) | Report::Done => Ok(()),
        }
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.endpoint.fmt(f)
    }
}

/// The supervisor's process, as long as this value lives.
#[derive(Debug)]
struct Link {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<BufReader<ChildStdout>>,
}

impl Link {
    fn start(wish: &Wish) -> Result<Self, Error> {
        let mut child = supervisor_command(wish)
            .stdin(Stdio::piped())
            .spawn()
            .map_err(|source| Error::Start {
                command: "cluster serve".into(),
                source,
            })?;
        Ok(Self {
            stdin: child.stdin.take(),
            stdout: child.stdout.take().map(BufReader::new),
            child,
        })
    }

    fn say(&mut self, line: &str) -> Result<(), Error> {
        let gone = |source| Error::Start {
            command: line.to_owned(),
            source,
        };
        let stdin = self.stdin.as_mut();
        stdin
            .map_or(Ok(()), |stdin| writeln!(stdin, "{line}"))
            .map_err(gone)
    }

    async fn answer(&mut self) -> Result<Report, Error> {
        let gone = || Error::Supervisor("it ended without a word".into());
        let mut stdout = self.stdout.take().ok_or_else(gone)?;
        let reading = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            let _ = stdout.read_line(&mut line);
            (stdout, line)
        });
        let (stdout, line) = reading.await.map_err(|_| gone())?;
        self.stdout = Some(stdout);
        serde_json::from_str(&line).map_err(|_| gone())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The end of its input is what the supervisor waits for.
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

/// The command that starts a supervisor. It stands in a process group of its
/// own, so that what kills a test's group leaves it alive to clear up.
#[must_use]
pub fn supervisor_command(wish: &Wish) -> std::process::Command {
    let mut command = std::process::Command::new(supervisor_path());
    command.arg("serve");
    command.arg(format!("--fake-nodes={}", wish.fake_nodes));
    command.args(wish.real_node.then_some("--real-node"));
    command.args(wish.kinds.then_some("--kinds"));
    command.args(wish.kept.as_deref().map(|name| format!("--kept={name}")));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0);
    command
}

/// The program `cluster` lies beside the tests of its crate, or one folder up.
fn supervisor_path() -> PathBuf {
    let here = std::env::current_exe().unwrap_or_default();
    let mut candidates = here
        .ancestors()
        .skip(1)
        .map(|folder| folder.join("cluster"));
    candidates
        .find(|path| path.is_file())
        .unwrap_or_else(|| PathBuf::from("cluster"))
}
