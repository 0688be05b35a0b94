//! The process behind a cluster: starts its programs, does what the test asks of
//! them, and takes everything away at the end. It is a process of its own so
//! that it outlives a test that is killed.

use std::{collections::BTreeMap, fs::File, net::Ipv4Addr, path::PathBuf};

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Node, ServiceAccount},
};
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use tokio::process::Child;

use super::{
    client, command,
    error::Error,
    fake, kinds,
    namespaces::{self, Namespaces},
    parts::Parts,
    place::{Owner, Place, Process},
    program::{Program, REAL_NODE},
    site,
};

/// What a cluster is to have.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    /// How many nodes without containers.
    pub fake_nodes: u16,
    /// Whether to have the node with real containers.
    pub real_node: bool,
    /// Whether LlavaDeployments and LlavaWorkers are known from the start.
    pub kinds: bool,
    /// The name under which it stays until `cluster down`.
    pub kept: Option<String>,
}

impl Wish {
    /// The levels of `tests/cluster/build` that it takes.
    #[must_use]
    pub fn levels(&self) -> Vec<&'static str> {
        let mut levels = vec!["control-plane"];
        levels.extend((self.fake_nodes > 0).then_some("fake-nodes"));
        levels.extend(self.real_node.then_some("real-node"));
        levels
    }
}

/// What whoever uses a cluster must know of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Endpoint {
    /// A kubeconfig with every right.
    pub kubeconfig: PathBuf,
    /// Where the API server and the node answer.
    pub node: Ipv4Addr,
    /// The folder with logs and configuration.
    pub folder: PathBuf,
    /// The first process of the cluster's namespaces.
    pub holder: u32,
    /// Programs and their processes, as this machine numbers them.
    pub programs: Vec<(String, u32)>,
}

/// A running cluster, from the inside.
#[derive(Debug)]
pub struct Supervisor {
    wish: Wish,
    parts: Parts,
    place: Place,
    owner: Owner,
    namespaces: Option<Namespaces>,
    running: BTreeMap<Program, Child>,
}

impl Supervisor {
    /// Builds what is missing and takes a place.
    ///
    /// # Errors
    /// When the parts cannot be built or no place is free.
    pub async fn new(wish: Wish) -> Result<Self, Error> {
        let parts = Parts::of(&wish.levels()).await?;
        let (place, owner) = Place::claim(wish.kept.clone()).await?;
        Ok(Self {
            wish,
            parts,
            place,
            owner,
            namespaces: None,
            running: BTreeMap::new(),
        })
    }

    /// Starts everything that was wished for, until it is usable.
    ///
    /// # Errors
    /// When a step fails, a program ends, or a deadline passes.
    pub async fn start(&mut self) -> Result<Endpoint, Error> {
        let created = Namespaces::create().await?;
        let holder = created.holder();
        self.owner.holder = Some(holder);
        self.place.note(&self.owner)?;
        tokio::try_join!(
            site::write(&self.place),
            self.place.network().connect(holder.pid())
        )?;
        created.furnish(&self.place).await?;
        self.namespaces = Some(created);

        self.run(Program::Etcd)?;
        self.run(Program::ApiServer)?;
        if self.wish.real_node {
            self.place.cgroup().create()?;
            self.run(Program::Containerd)?;
            self.load_images().await?;
        }
        let kubeconfig = self.kubeconfig();
        // A client of its own for each try: the first may have read a certificate
        // that was only half written.
        let client = self
            .until("a ready API server", async || {
                let client = client::connect(&kubeconfig).await.ok()?;
                client::is_ready(&client).await?;
                Some(client)
            })
            .await?;

        if self.wish.kinds {
            kinds::install_kinds(&client).await?;
        }
        self.run(Program::ControllerManager)?;
        self.run(Program::Scheduler)?;
        if self.wish.real_node {
            self.run(Program::Kubelet)?;
            self.run(Program::Proxy)?;
            self.run(Program::NetworkPolicies)?;
            self.kubectl(&["create", "-f", "coredns.yaml"]).await?;
        }
        if self.wish.fake_nodes > 0 {
            self.run(Program::Kwok)?;
        }
        self.usable(&client).await?;
        Ok(self.endpoint(holder))
    }

    /// Does what a line of the test asks: `start PROGRAM`, or a signal's name
    /// and a program.
    ///
    /// # Errors
    /// When there is no such program, or it cannot be started.
    pub async fn obey(&mut self, line: &str) -> Result<(), Error> {
        let (verb, name) = line.split_once(' ').unwrap_or((line, ""));
        let program: Program = name.parse().map_err(Error::Supervisor)?;
        if verb == "start" {
            return self.run(program);
        }
        let Some(child) = self.running.get_mut(&program) else {
            return Err(Error::Supervisor(format!("{program} does not run")));
        };
        if let Some(process) = inner(child) {
            process.signal(verb).await;
        }
        if matches!(verb, "KILL" | "TERM") {
            // Its reader has then seen the end of every connection.
            let _ = child.wait().await;
            self.running.remove(&program);
        }
        Ok(())
    }

    /// Ends everything and takes it away.
    ///
    /// # Errors
    /// When something would not go.
    pub async fn stop(self) -> Result<(), Error> {
        self.keep_logs();
        let given = self.place.give_back(self.owner.holder).await;
        drop(self.running);
        given
    }

    /// Copies the logs out of the place, when the environment says where to.
    fn keep_logs(&self) {
        let Some(folder) = std::env::var_os("LLAVA_CLUSTER_LOGS") else {
            return;
        };
        let folder = PathBuf::from(folder).join(self.owner.supervisor.pid().to_string());
        let copied = std::fs::create_dir_all(&folder).and_then(|()| {
            Program::ALL.into_iter().try_for_each(|program| {
                let log = site::log(&self.place, program);
                if log.exists() {
                    std::fs::copy(&log, folder.join(format!("{program}.log")))?;
                }
                Ok(())
            })
        });
        if let Err(error) = copied {
            tracing::warn!(%error, folder = %folder.display(), "logs not kept");
        }
    }

    fn kubeconfig(&self) -> PathBuf {
        self.place.folder().join("admin.kubeconfig")
    }

    fn endpoint(&mut self, holder: Process) -> Endpoint {
        let programs = self.running.iter_mut();
        Endpoint {
            kubeconfig: self.place.folder().join("admin.kubeconfig"),
            node: self.place.network().node(),
            folder: self.place.folder().to_owned(),
            holder: holder.pid(),
            programs: programs
                .filter_map(|(program, child)| Some((program.to_string(), inner(child)?.pid())))
                .collect(),
        }
    }

    fn holder(&self) -> Result<u32, Error> {
        let namespaces = self.namespaces.as_ref();
        namespaces
            .map(|namespaces| namespaces.holder().pid())
            .ok_or_else(|| Error::Supervisor("the cluster has not started".into()))
    }

    fn run(&mut self, program: Program) -> Result<(), Error> {
        let path = site::log(&self.place, program);
        let log = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(Error::file("open the log", &path))?;
        let errors = log.try_clone().map_err(Error::file("open the log", path))?;
        let words = program.arguments(&self.place, &self.parts);
        let mut command = namespaces::enter(self.holder()?, words[0].as_ref());
        command
            .args(&words[1..])
            .env("PATH", self.parts.search_path())
            .envs(program.environment())
            .stdin(std::process::Stdio::null())
            .stdout(log)
            .stderr(errors)
            .kill_on_drop(true);
        let child = command.spawn().map_err(|source| Error::Start {
            command: words.join(" "),
            source,
        })?;
        self.running.insert(program, child);
        Ok(())
    }

    /// Waits until `probe` gives a value, as long as every program runs.
    async fn until<T>(
        &mut self,
        what: &str,
        mut probe: impl AsyncFnMut() -> Option<T>,
    ) -> Result<T, Error> {
        let place = &self.place;
        let running = &mut self.running;
        command::wait_for(what, command::STEP, async || {
            let mut programs = running.iter_mut();
            let ended = programs.find_map(|(program, child)| {
                (!matches!(child.try_wait(), Ok(None))).then_some(program)
            });
            if let Some(program) = ended {
                let log = std::fs::read_to_string(site::log(place, *program)).unwrap_or_default();
                return Some(Err(Error::Ended {
                    program: program.name(),
                    log: command::tail(&log, 20),
                }));
            }
            probe().await.map(Ok)
        })
        .await?
    }

    /// Waits until a test can make use of everything.
    async fn usable(&mut self, client: &Client) -> Result<(), Error> {
        let accounts: Api<ServiceAccount> = Api::default_namespaced(client.clone());
        self.until("the default service account", async || {
            accounts.get("default").await.ok()
        })
        .await?;
        let nodes: Api<Node> = Api::all(client.clone());
        if self.wish.fake_nodes > 0 {
            let all = 0..self.wish.fake_nodes;
            stream::iter(all)
                .map(|number| fake::create_node(&nodes, number))
                .buffer_unordered(16)
                .try_collect::<Vec<()>>()
                .await?;
        }
        if self.wish.real_node {
            self.until("a ready node", async || {
                client::has_condition(&nodes.get(REAL_NODE).await.ok()?, "Ready")
            })
            .await?;
            let system: Api<Deployment> = Api::namespaced(client.clone(), "kube-system");
            self.until("the cluster's name server", async || {
                let found = system.get("coredns").await.ok()?;
                (found.status?.ready_replicas? > 0).then_some(())
            })
            .await?;
        }
        for number in 0..self.wish.fake_nodes {
            let name = fake::node_name(number);
            self.until("ready fake nodes", async || {
                client::has_condition(&nodes.get(&name).await.ok()?, "Ready")
            })
            .await?;
        }
        Ok(())
    }

    async fn load_images(&mut self) -> Result<(), Error> {
        let holder = self.holder()?;
        let socket = PathBuf::from(format!(
            "/proc/{holder}/root/run/containerd/containerd.sock"
        ));
        self.until("containerd", async || socket.exists().then_some(()))
            .await?;
        for image in ["probe.tar", "coredns.tar"] {
            namespaces::load_image(holder, &self.parts, &self.parts.path(image)).await?;
        }
        Ok(())
    }

    async fn kubectl(&self, words: &[&str]) -> Result<(), Error> {
        let mut kubectl = tokio::process::Command::new(self.parts.path("kubectl"));
        kubectl
            .current_dir(self.place.folder())
            .arg("--kubeconfig=admin.kubeconfig")
            .args(words);
        command::run(&mut kubectl).await?;
        Ok(())
    }
}

/// The program behind the `nsenter` that waits for it.
fn inner(child: &Child) -> Option<Process> {
    Process::of(namespaces::child_of(child.id()?)?)
}
