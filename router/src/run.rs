//! A router as a running thing: its listeners, its table, its drain.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Json;
use axum::routing::get;
use http::HeaderValue;
use kube::{Client, Config};
use prometheus_client::registry::Registry;
use shell::readiness::{Condition, Readiness};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::api::keys::{self, Keys, KeysError, WorkerKeyError};
use crate::api::service::Gate;
use crate::api::workers;
use crate::args::RouterArgs;
use crate::dispatch::fleet::Fleet;
use crate::dispatch::pool::Rules;
use crate::end::End;
use crate::metrics::Meter;
use crate::metrics::collect::Everything;
use crate::metrics::meter::Count;
use crate::probe::Pace;
use crate::request::intake::Budget;
use crate::server::{self, ConnectionLimits, Connections};
use crate::table::kubernetes::Scope;
use crate::table::lease::Identity;
use crate::table::record::{Discovery, Table};
use crate::table::{fixed, kubernetes, lease};
use crate::trace::{Tracing, TracingError};

/// Between two looks whether the last stream has ended.
const LOOK: Duration = Duration::from_millis(20);
/// For what is cut to take its last bytes. Short beside the margin that the chart leaves
/// between the drain's limit and the end of the Pod's grace period.
const FLUSH: Duration = Duration::from_secs(2);

/// Of the API server in the middle of an answer.
const SILENCE: Duration = Duration::from_secs(310);

/// A running router. Dropping it ends everything at once.
#[derive(Debug)]
pub struct Router {
    /// The API's address.
    pub address: SocketAddr,
    /// The admin port's address.
    pub admin_address: SocketAddr,
    gate: Arc<Gate>,
    connections: Connections,
    serving: Condition,
    settle: Duration,
    drain_timeout: Duration,
    stop_accepting: End,
    _tasks: Vec<Task>,
}

/// A router could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The API's address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The admin port's address cannot be listened on.
    #[error(transparent)]
    Admin(#[from] shell::admin::BindError),
    /// A `--worker` makes no sense.
    #[error(transparent)]
    Worker(#[from] fixed::InvalidWorker),
    /// The API keys cannot be read.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The workers' key cannot be read.
    #[error(transparent)]
    WorkerKey(#[from] WorkerKeyError),
    /// Spans cannot be sent.
    #[error(transparent)]
    Tracing(#[from] TracingError),
    /// There is no way to the API server.
    #[error("no way to the Kubernetes API server, and no --worker: {0}")]
    Kubernetes(#[from] Box<kube::Error>),
}

impl Router {
    /// Starts a router.
    ///
    /// # Errors
    /// When an address cannot be listened on or an argument makes no sense.
    pub async fn start(args: RouterArgs) -> Result<Self, StartError> {
        let listen_error = |source| StartError::Listen {
            address: args.listen,
            source,
        };
        let listener = server::listen(args.listen).map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        let admin = shell::admin::bind(args.shell.admin_listen).await?;
        let admin_address = admin.local_addr().map_err(listen_error)?;
        let worker_key = args
            .worker_key
            .as_deref()
            .map(keys::worker_key)
            .transpose()?;
        let fleet = Arc::new(fleet(&args, worker_key.clone()));
        let gate = Arc::new(gate(&args, Arc::clone(&fleet))?);
        let readiness = Readiness::default();
        let serving = readiness.condition("accepting requests");
        let known = readiness.condition("workers known");
        let discovery = Arc::new(Discovery::new(shell::clock::now()));
        let (publish, table) = watch::channel(Table::default());
        let mut tasks = vec![keep(follow(table, Arc::clone(&fleet), known))];
        tasks.extend(gate.keys.clone().map(|keys| keep(keys.follow())));
        if args.worker.is_empty() {
            tasks.extend(watch_cluster(&args, publish, &fleet, &discovery).await?);
        } else {
            tasks.extend(fix_table(&args, worker_key, publish)?);
        }
        let connections = Connections::default();
        let stop_accepting = End::default();
        tasks.push(keep(server::serve(
            listener,
            Arc::clone(&gate),
            ConnectionLimits {
                connections: args.limits.max_connections,
                header: args.timeouts.header_timeout,
                write: args.timeouts.write_timeout,
            },
            connections.clone(),
            stop_accepting.clone(),
        )));
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Everything {
            gate: Arc::clone(&gate),
            connections: connections.clone(),
            discovery,
        }));
        let routes = shell::admin::routes(readiness, Arc::new(registry)).route(
            "/workers",
            get(async move || Json(workers::table(&fleet, shell::clock::now()))),
        );
        tasks.push(keep(async move {
            if let Err(error) = shell::admin::serve(admin, routes, CancellationToken::new()).await {
                tracing::error!(%error, "the admin port failed");
            }
        }));
        serving.set(true);
        tracing::info!(%address, %admin_address, "serving");
        Ok(Self {
            address,
            admin_address,
            gate,
            connections,
            serving,
            settle: args.timeouts.settle,
            drain_timeout: args.timeouts.drain_timeout,
            stop_accepting,
            _tasks: tasks,
        })
    }

    /// Goes down without breaking a stream: not ready at once, but accepting for
    /// a while, because it takes a moment until nobody is sent here any more;
    /// then refusing connections and finishing streams. What is left at the end of its
    /// time is told so, and cut.
    pub async fn drain(self) {
        self.gate.draining.store(true, Ordering::Relaxed);
        self.serving.set(false);
        let settle = self.settle.min(self.drain_timeout / 2);
        tokio::time::sleep(settle).await;
        self.stop_accepting.come();
        let streams_end = async || {
            while self.connections.count() > 0 {
                tokio::time::sleep(LOOK).await;
            }
        };
        let left = self.drain_timeout.saturating_sub(settle);
        if tokio::time::timeout(left, streams_end()).await.is_err() {
            tracing::warn!(
                connections = self.connections.count(),
                "cut at the drain timeout"
            );
            self.gate.over.come();
            let _ = tokio::time::timeout(FLUSH, streams_end()).await;
        }
        if let Some(tracing) = &self.gate.tracing {
            tracing.clone().finish().await;
        }
    }
}

type Task = AbortOnDropHandle<()>;

fn fleet(args: &RouterArgs, worker_key: Option<HeaderValue>) -> Fleet {
    let rules = Rules {
        dispatch: args.dispatch,
        default_slots: args.limits.default_slots,
        max_queued: args.limits.max_queued,
        max_held: args.limits.max_held,
        max_waiting_bytes: args.limits.max_waiting_bytes(),
        warm_up: args.timeouts.warm_up,
        poll_interval: args.timeouts.poll_interval,
    };
    let pace = Pace {
        interval: args.timeouts.poll_interval,
        timeout: args.timeouts.poll_timeout,
    };
    Fleet::new(rules, pace, worker_key)
}

fn gate(args: &RouterArgs, fleet: Arc<Fleet>) -> Result<Gate, StartError> {
    Ok(Gate {
        fleet,
        limits: args.limits.clone(),
        timeouts: Arc::new(args.timeouts.clone()),
        budget: Budget::new(args.limits.max_buffered),
        keys: args.api_keys.as_deref().map(Keys::read).transpose()?,
        page: !args.no_page,
        tracing: args
            .otlp_endpoint
            .as_ref()
            .map(Tracing::start)
            .transpose()?,
        meter: Meter::default(),
        left_early: Count::default(),
        buffers_full: Count::default(),
        draining: AtomicBool::new(false),
        over: End::default(),
    })
}

/// Keeps the table as Kubernetes knows it, and tells there what is in flight here.
async fn watch_cluster(
    args: &RouterArgs,
    publish: watch::Sender<Table>,
    fleet: &Arc<Fleet>,
    discovery: &Arc<Discovery>,
) -> Result<Vec<Task>, StartError> {
    let client = client().await.map_err(Box::new)?;
    let identity = Identity::from_env();
    let own_namespace = identity.as_ref().map(|identity| identity.namespace.clone());
    let scope = Scope {
        own_namespace: own_namespace
            .or_else(|| args.namespace.clone())
            .unwrap_or_else(|| client.default_namespace().to_owned()),
        namespace: args.namespace.clone(),
    };
    let watching = kubernetes::watch(client.clone(), scope, publish, Arc::clone(discovery));
    let mut tasks = vec![keep(watching)];
    match identity {
        Some(identity) => tasks.push(keep(lease::renew(client, identity, Arc::clone(fleet)))),
        None => tracing::warn!(
            "POD_NAME and POD_NAMESPACE are not set: no Lease is renewed, so the operator sees no demand"
        ),
    }
    Ok(tasks)
}

/// With a limit on silence: a list that is never answered would leave the table as it is for
/// ever. Watches are silent too, but for less: they end themselves after 295 s at the most.
async fn client() -> kube::Result<Client> {
    let mut config = Config::infer().await.map_err(kube::Error::InferConfig)?;
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    Client::try_from(config)
}

/// Makes the table of the workers on the command line.
fn fix_table(
    args: &RouterArgs,
    worker_key: Option<HeaderValue>,
    publish: watch::Sender<Table>,
) -> Result<Option<Task>, StartError> {
    let workers = fixed::parse(&args.worker)?;
    let created = i64::try_from(shell::clock::unix_millis() / 1000).unwrap_or(0);
    if let Some(model) = &args.model {
        publish.send_replace(fixed::of_one_model(&workers, model, created));
        return Ok(None);
    }
    let asking = fixed::ask_for_models(workers, worker_key, publish, created);
    Ok(Some(keep(asking)))
}

fn keep(task: impl Future<Output = ()> + Send + 'static) -> Task {
    let handle: JoinHandle<()> = tokio::spawn(task);
    AbortOnDropHandle::new(handle)
}

async fn follow(mut table: watch::Receiver<Table>, fleet: Arc<Fleet>, known: Condition) {
    loop {
        let now = shell::clock::now();
        let current = table.borrow_and_update().clone();
        fleet.apply(&current, now);
        if current.synced {
            known.set(true);
        }
        if table.changed().await.is_err() {
            // Nothing more will come, and what is known stays known.
            return std::future::pending().await;
        }
    }
}
