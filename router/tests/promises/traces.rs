//! Spans of requests, for those who name a collector.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http_body_util::{BodyExt as _, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use prost::Message as _;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::support::client::{ask, chat};
use crate::support::{FakeWorker, router};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// A collector that keeps what it is sent.
struct Collector {
    address: SocketAddr,
    spans: Arc<Mutex<Vec<Span>>>,
    _task: AbortOnDropHandle<()>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let spans: Arc<Mutex<Vec<Span>>> = Arc::default();
        let kept = Arc::clone(&spans);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let kept = Arc::clone(&kept);
                let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let kept = Arc::clone(&kept);
                    async move {
                        assert_eq!(request.uri().path(), "/v1/traces");
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        let sent = ExportTraceServiceRequest::decode(body).unwrap();
                        for resource in sent.resource_spans {
                            for scope in resource.scope_spans {
                                kept.lock().unwrap().extend(scope.spans);
                            }
                        }
                        Ok::<_, Infallible>(http::Response::new(Full::<bytes::Bytes>::default()))
                    }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self {
            address,
            spans,
            _task: AbortOnDropHandle::new(task),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attribute(span: &Span, key: &str) -> Value {
    let found = span.attributes.iter().find(|pair| pair.key == key);
    let value = found.and_then(|pair| pair.value.clone()?.value);
    value.unwrap_or_else(|| panic!("no {key} in {span:?}"))
}

fn traced(wish: &serde_json::Value) -> http::Request<Full<bytes::Bytes>> {
    let mut request = chat(wish);
    let context = format!("00-{TRACE}-{CALLER}-01").parse().unwrap();
    request.headers_mut().insert("traceparent", context);
    request
}

#[tokio::test]
async fn a_request_becomes_a_span_between_its_callers_and_its_workers() {
    let worker = FakeWorker::start().await;
    let collector = Collector::start().await;
    let flag = format!("--otlp-endpoint=http://{}", collector.address);
    let router = router(&[&worker]).with(&flag).start().await;
    let reply = ask(router.address, traced(&json!({"stream": true}))).await;
    assert_eq!(reply.status, 200);
    let seen_by_worker = worker.last().1["traceparent"].to_str().unwrap().to_owned();
    let broken = json!({"stream": true, "die_after": 1});
    ask(router.address, traced(&broken)).await;
    // What is not sent yet goes out before the end.
    router.drain().await;
    let mut spans = collector.spans.lock().unwrap().clone();
    spans.sort_by_key(|span| span.start_time_unix_nano);
    assert_eq!(spans.len(), 2, "{spans:?}");
    let span = &spans[0];
    assert_eq!(span.name, "POST /v1/chat/completions");
    assert_eq!(
        (
            hex(&span.trace_id).as_str(),
            hex(&span.parent_span_id).as_str()
        ),
        (TRACE, CALLER)
    );
    assert_eq!(
        seen_by_worker,
        format!("00-{TRACE}-{}-01", hex(&span.span_id))
    );
    let model = attribute(span, "gen_ai.request.model");
    assert_eq!(model, Value::StringValue("m".to_owned()));
    let status = attribute(span, "http.response.status_code");
    assert_eq!(status, Value::IntValue(200));
    let events: Vec<&str> = span
        .events
        .iter()
        .map(|event| event.name.as_str())
        .collect();
    assert_eq!(events, ["sent", "answered"]);
    assert_eq!(spans[1].status.as_ref().unwrap().code(), StatusCode::Error);
    let cause = attribute(&spans[1], "error.type");
    assert_eq!(cause, Value::StringValue("worker_lost".to_owned()));
}

#[tokio::test]
async fn a_caller_that_is_not_sampled_is_left_alone() {
    let worker = FakeWorker::start().await;
    let collector = Collector::start().await;
    let flag = format!("--otlp-endpoint=http://{}", collector.address);
    let router = router(&[&worker]).with(&flag).start().await;
    let mut request = chat(&json!({}));
    let context = format!("00-{TRACE}-{CALLER}-00").parse().unwrap();
    request.headers_mut().insert("traceparent", context);
    assert_eq!(ask(router.address, request).await.status, 200);
    let context = worker.last().1["traceparent"].to_str().unwrap().to_owned();
    assert!(context.starts_with(&format!("00-{TRACE}-")) && context.ends_with("-00"));
    router.drain().await;
    assert!(collector.spans.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_collector_that_is_away_costs_nobody_an_answer() {
    let worker = FakeWorker::start().await;
    let router = router(&[&worker])
        .with("--otlp-endpoint=http://127.0.0.1:9")
        .start()
        .await;
    for _ in 0..20 {
        assert_eq!(ask(router.address, chat(&json!({}))).await.status, 200);
    }
    crate::support::soon("the drain", router.drain()).await;
}
