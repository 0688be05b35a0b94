//! Spans of requests for an OTLP collector, when one is named; without it, the
//! caller's W3C context just passes through. A span says which model, which
//! worker and how it ended; never what was asked or answered.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{
    Span as _, SpanKind, Status, TraceContextExt as _, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HeaderExtractor, HeaderInjector, HttpClient, HttpError};
use opentelemetry_otlp::{
    ExporterBuildError, SpanExporter, WithExportConfig as _, WithHttpConfig as _,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span};
use tokio::runtime::Handle;

const NAME: &str = "llava-router";
/// What OTLP over HTTP adds to a collector's address.
const PATH: &str = "/v1/traces";
/// For a collector to take a batch.
const PATIENCE: Duration = Duration::from_secs(10);
/// For the last batches when the router goes down.
const LAST: Duration = Duration::from_secs(3);
/// Nothing longer is read of a collector's answer.
const MAX_ANSWER: usize = 64 * 1024;

/// Where spans go.
#[derive(Clone, Debug)]
pub(crate) struct Tracing {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    propagator: TraceContextPropagator,
}

/// The span of one request; it ends when the last clone is dropped.
#[derive(Clone, Debug)]
pub(crate) struct RequestSpan(Arc<Mutex<Span>>);

/// Spans cannot be sent.
#[derive(Debug, thiserror::Error)]
pub enum TracingError {
    /// Not an address that can be used.
    #[error("--otlp-endpoint `{0}`: write it like http://collector:4318")]
    Address(Uri),
    /// The exporter refused to start.
    #[error("--otlp-endpoint: {0}")]
    Exporter(#[from] ExporterBuildError),
}

impl Tracing {
    /// Sends spans to the collector at `endpoint`, in batches, from a thread of
    /// its own. How many, how often and of which requests is told by OpenTelemetry's
    /// own environment variables, `OTEL_BSP_*` and `OTEL_TRACES_SAMPLER`.
    pub(crate) fn start(endpoint: &Uri) -> Result<Self, TracingError> {
        if endpoint.scheme_str() != Some("http") || endpoint.host().is_none() {
            return Err(TracingError::Address(endpoint.clone()));
        }
        let base = endpoint.to_string();
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Collector {
                client: Client::builder(TokioExecutor::new()).build(HttpConnector::new()),
                runtime: Handle::current(),
            })
            .with_endpoint(format!("{}{PATH}", base.trim_end_matches('/')))
            .build()?;
        let resource = Resource::builder()
            .with_service_name(NAME)
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource)
            .build();
        let tracer = provider.tracer(NAME);
        Ok(Self {
            provider,
            tracer,
            propagator: TraceContextPropagator::new(),
        })
    }

    /// Begins the span of a request, as a child of its caller's, and makes it the
    /// parent of the worker's.
    pub(crate) fn begin(&self, path: &str, headers: &mut HeaderMap) -> RequestSpan {
        let caller = self
            .propagator
            .extract_with_context(&Context::new(), &HeaderExtractor(headers));
        let span = self
            .tracer
            .span_builder(format!("POST {path}"))
            .with_kind(SpanKind::Server)
            .with_attributes([
                KeyValue::new("http.request.method", "POST"),
                KeyValue::new("url.path", path.to_owned()),
            ])
            .start_with_context(&self.tracer, &caller);
        let ours = Context::new().with_remote_span_context(span.span_context().clone());
        self.propagator
            .inject_context(&ours, &mut HeaderInjector(headers));
        RequestSpan(Arc::new(Mutex::new(span)))
    }

    /// Sends what is left.
    pub(crate) async fn finish(self) {
        let last = tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(LAST));
        if let Ok(Err(error)) = last.await {
            tracing::warn!(%error, "the last spans were not sent");
        }
    }
}

impl RequestSpan {
    /// The model asked for, as the caller names it.
    pub(crate) fn model(&self, model: &str) {
        self.set(KeyValue::new("gen_ai.request.model", model.to_owned()));
    }

    /// The request goes to this worker.
    pub(crate) fn sent_to(&self, worker: &str) {
        let worker = KeyValue::new("llava.worker", worker.to_owned());
        self.lock().add_event("sent", vec![worker]);
    }

    /// The first byte of the answer is there, or a refusal.
    pub(crate) fn answered(&self, status: StatusCode) {
        let mut span = self.lock();
        let code = i64::from(status.as_u16());
        span.add_event("answered", Vec::new());
        span.set_attribute(KeyValue::new("http.response.status_code", code));
        if status.is_server_error() {
            span.set_status(Status::error(""));
        }
    }

    /// The answer broke off.
    pub(crate) fn broken(&self, code: &'static str) {
        let mut span = self.lock();
        span.set_attribute(KeyValue::new("error.type", code));
        span.set_status(Status::error(code));
    }

    fn set(&self, attribute: KeyValue) {
        self.lock().set_attribute(attribute);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Span> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The way to the collector. Batches come from a thread without a runtime, so
/// that each is handed to ours.
#[derive(Debug)]
struct Collector {
    client: Client<HttpConnector, Full<Bytes>>,
    runtime: Handle,
}

#[async_trait::async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.client.request(request.map(Full::new));
        let exchange = async move {
            let (head, body) = answer.await?.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
            Ok::<_, HttpError>(Response::from_parts(head, body))
        };
        let sent = self
            .runtime
            .spawn(async { tokio::time::timeout(PATIENCE, exchange).await })
            .await?;
        let sent = sent.map_err(HttpError::from).and_then(|sent| sent);
        match &sent {
            Ok(answer) if answer.status().is_success() => {}
            Ok(answer) => tracing::warn!(status = %answer.status(), "the collector refused spans"),
            Err(error) => tracing::warn!(%error, "the collector cannot be reached"),
        }
        sent
    }
}
