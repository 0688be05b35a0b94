//! The life of the process: fetch, load, warm up, serve, drain. Each step shows
//! in the log, in the metrics, on the admin port and in the Lease.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::routing::get;
use prometheus_client::registry::Registry;
use protocol::load::Phase;
use shell::readiness::{Condition, Readiness};
use shell::{admin, clock, shutdown};
use tokio::net::TcpListener;
use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::app::{App, routes};
use super::args::ServeArgs;
use super::buffers::Buffers;
use super::connection::{self, ConnectionLimits};
use super::gate::Gate;
use super::lease::{self, LeaseIdentity, MissingVariable};
use super::loading::{AppParts, LoadFailure, Loaded, load};
use super::metrics::HttpMetrics;
use super::status::Status;
use crate::engine::{self, EngineHandle, EngineMetrics, Event, Failure, PromptPiece, Request};
use crate::prompt::{Message, Piece, Role};
use crate::sampling::SamplingParams;

/// How often the engine's pulse is felt.
const PULSE_EVERY: Duration = Duration::from_secs(1);
/// How long streams that were ended with an error may take to say so, and the
/// Lease that the worker drains.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long the proof that the model works may take.
const WARM_UP: Duration = Duration::from_secs(600);

/// Why the process ends other than by being asked to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The model cannot be had.
    #[error(transparent)]
    Load(#[from] LoadFailure),
    /// An address is taken.
    #[error(transparent)]
    Bind(#[from] admin::BindError),
    /// The Lease is not named.
    #[error(transparent)]
    Lease(#[from] MissingVariable),
    /// The system refused something.
    #[error("cannot {what}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The loaded model gives no token.
    #[error("the loaded model gives no token: {0}")]
    WarmUp(String),
    /// The engine does not move any more.
    #[error("the engine has been stuck in one step for {} s; the process ends so that it is started again", .0.as_secs())]
    Wedged(Duration),
    /// The engine thread is gone.
    #[error(
        "the engine has stopped after faults of the model; the process ends so that it is started again"
    )]
    Dead,
}

/// Serves until the process is asked to stop.
///
/// # Errors
/// Whatever ends the process before that.
pub async fn run(args: ServeArgs) -> Result<(), ServeError> {
    let stop = shutdown::on_signals().map_err(|source| ServeError::System {
        what: "install signal handlers",
        source,
    })?;
    let life = Life::begin(args).await?;
    let ready = life.readiness.condition("model");
    let (app, engine) = tokio::select! {
        started = life.start() => started?,
        // Nobody waits for anything yet.
        () = stop.cancelled() => {
            tracing::info!("asked to stop while starting");
            return Ok(());
        }
    };
    ready.set(true);
    life.serve(app, &engine, &ready, &stop).await
}

struct Life {
    args: ServeArgs,
    began: Instant,
    readiness: Readiness,
    status: Status,
    api: std::sync::Mutex<Option<TcpListener>>,
    engine_metrics: EngineMetrics,
    http_metrics: HttpMetrics,
    /// The phase that the Lease says; `None` without a Lease.
    told: Option<watch::Receiver<Option<Phase>>>,
    /// Ends what goes on until the very end: admin port and Lease.
    end: CancellationToken,
}

impl Drop for Life {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

impl Life {
    async fn begin(args: ServeArgs) -> Result<Self, ServeError> {
        let mut life = Self {
            began: clock::now(),
            readiness: Readiness::default(),
            status: Status::default(),
            api: std::sync::Mutex::new(Some(admin::bind(args.listen).await?)),
            engine_metrics: EngineMetrics::default(),
            http_metrics: HttpMetrics::default(),
            told: None,
            end: CancellationToken::new(),
            args,
        };
        let mut registry = Registry::default();
        life.engine_metrics.register(&mut registry);
        life.http_metrics.register(&mut registry);
        life.status.register(&mut registry);
        let status = life.status.clone();
        let api = life
            .api
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .as_ref()
            .and_then(|api| api.local_addr().ok());
        let routes = admin::routes(life.readiness.clone(), Arc::new(registry))
            .route("/status", get(async move || Json(status.describe())));
        let listener = admin::bind(life.args.shell.admin_listen).await?;
        tracing::info!(
            api = %api.unwrap_or(life.args.listen),
            admin = %listener.local_addr().unwrap_or(life.args.shell.admin_listen),
            "starting"
        );
        tokio::spawn(admin::serve(listener, routes, life.end.clone()));
        if life.args.lease {
            let identity = LeaseIdentity::read(|name| std::env::var(name).ok())?;
            let (tell, told) = watch::channel(None);
            tokio::spawn(lease::renew(
                identity,
                life.status.clone(),
                tell,
                life.end.clone(),
            ));
            life.told = Some(told);
        }
        Ok(life)
    }

    /// Fetches, loads and proves the model.
    async fn start(&self) -> Result<(App, EngineHandle), ServeError> {
        let loaded = load(&self.args, &self.status, &self.engine_metrics).await?;
        let Loaded {
            parts,
            options,
            backend,
        } = loaded;
        let slots = engine::Backend::slots(&backend);
        let engine = engine::start(backend, options).map_err(|source| ServeError::System {
            what: "start the engine thread",
            source,
        })?;
        self.warm_up(&engine, &parts).await?;
        let gate = Gate::new(slots + self.args.limits.max_queue_length);
        let seconds = clock::now()
            .saturating_duration_since(self.began)
            .as_secs_f32();
        self.status
            .serve(engine.clone(), gate.clone(), slots, seconds);
        self.status.enter(Phase::Serving);
        tracing::info!(seconds, slots, context = parts.context, "serving");
        let app = App {
            names: self.args.names(),
            created: clock::unix_millis() / 1000,
            limits: self.args.limits.clone(),
            context: parts.context,
            vocab: parts.vocab,
            texts: parts.texts,
            images: parts.images,
            engine: engine.clone(),
            gate,
            buffers: Buffers::new(self.args.limits.max_buffered),
            status: self.status.clone(),
            metrics: self.http_metrics.clone(),
        };
        Ok((app, engine))
    }

    /// Answers requests until asked to stop, then drains.
    async fn serve(
        &self,
        app: App,
        engine: &EngineHandle,
        ready: &Condition,
        stop: &CancellationToken,
    ) -> Result<(), ServeError> {
        let gate = app.gate.clone();
        let closing = CancellationToken::new();
        let limits = ConnectionLimits {
            connections: self.args.limits.max_connections,
            header: self.args.limits.header_timeout,
            write_stall: self.args.limits.write_stall_timeout,
        };
        let listener = self
            .api
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .take();
        let server = listener.map(|listener| {
            tokio::spawn(connection::serve(
                listener,
                routes(Arc::new(app)),
                limits,
                closing.clone(),
            ))
        });
        tokio::select! {
            () = stop.cancelled() => {}
            error = self.watch(engine) => {
                ready.set(false);
                self.readiness.give_up(error.to_string());
                return Err(error);
            }
        }
        self.status.enter(Phase::Draining);
        ready.set(false);
        gate.close();
        tracing::info!(requests = gate.held(), "draining");
        if tokio::time::timeout(self.args.drain_timeout, gate.emptied())
            .await
            .is_err()
        {
            tracing::warn!(
                requests = gate.held(),
                "the grace is over: the remaining requests end with an error"
            );
            engine.abort();
            // Who does not take the error in this time is gone.
            let _ = tokio::time::timeout(LAST_WORDS, gate.emptied()).await;
        }
        closing.cancel();
        let closed = async {
            if let Some(server) = server {
                // Idle connections end at once; a reader that stalls is not waited for.
                let _ = tokio::time::timeout(LAST_WORDS, server).await;
            }
        };
        tokio::join!(closed, self.has_told_of_drain());
        tracing::info!("stopped");
        Ok(())
    }

    /// Waits until the Lease says that the worker drains. One that has nothing to finish would
    /// be gone before, and who decides by the Lease would take it for lost.
    async fn has_told_of_drain(&self) {
        let Some(mut told) = self.told.clone() else {
            return;
        };
        let told = told.wait_for(|phase| *phase == Some(Phase::Draining));
        if tokio::time::timeout(LAST_WORDS, told).await.is_err() {
            tracing::warn!("the Lease does not say that this worker drains");
        }
    }

    /// Ends when the engine is no longer of use.
    async fn watch(&self, engine: &EngineHandle) -> ServeError {
        let mut ticks = tokio::time::interval(PULSE_EVERY);
        loop {
            ticks.tick().await;
            let pulse = engine.pulse();
            if pulse.has_ended() {
                return ServeError::Dead;
            }
            if let Some(stuck) = pulse.stuck_for(clock::now())
                && stuck > self.args.step_timeout
            {
                return ServeError::Wedged(stuck);
            }
        }
    }

    /// Produces a real token through the whole engine.
    async fn warm_up(&self, engine: &EngineHandle, parts: &AppParts) -> Result<(), ServeError> {
        self.status.enter(Phase::WarmingUp);
        let began = clock::now();
        let failed = |problem: String| ServeError::WarmUp(problem);
        let prompt = parts
            .texts
            .chat(&[Message::text(Role::User, "Hello")])
            .map_err(failed)?;
        let pieces = prompt.pieces.into_iter().filter_map(|piece| match piece {
            Piece::Text(ids) => Some(PromptPiece::Tokens(ids)),
            Piece::Image(_) => None,
        });
        let (events, mut coming) = unbounded_channel();
        let request = Request {
            prompt: pieces.collect(),
            max_tokens: 2,
            sampling: SamplingParams::greedy(),
            stop: Vec::new(),
            logprobs: None,
            streams: false,
            decode: parts.texts.decoder(),
            arrived: began,
            deadline: None,
            ended: Arc::default(),
            events,
        };
        let proof = async {
            engine.submit(request)?;
            loop {
                match coming.recv().await {
                    Some(Event::Started { .. } | Event::Token(_)) => {}
                    Some(Event::Finished { .. }) => return Ok(()),
                    Some(Event::Failed(failure)) => return Err(failure),
                    None => return Err(Failure::Gone),
                }
            }
        };
        match tokio::time::timeout(WARM_UP, proof).await {
            Ok(Ok(())) => {}
            Ok(Err(failure)) => return Err(failed(failure.to_string())),
            Err(_) => return Err(failed(format!("nothing came in {} s", WARM_UP.as_secs()))),
        }
        self.status.done("warm_up", began);
        Ok(())
    }
}

/// Writes why the process ends to where Kubernetes reads it.
pub fn write_termination_log(path: Option<&PathBuf>, error: &dyn std::error::Error) {
    let Some(path) = path else {
        return;
    };
    if let Err(problem) = std::fs::write(path, crate::error_text::chain(error)) {
        tracing::warn!(path = %path.display(), %problem, "cannot write the termination log");
    }
}
