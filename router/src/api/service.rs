//! Which path leads where. The list is complete: what is not on it is 404.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{HeaderName, Method, Request, Response};
use hyper::body::Incoming;
use protocol::header as ours;

use crate::api::keys::Keys;
use crate::api::{llava, models, page};
use crate::args::{Limits, Timeouts};
use crate::dispatch::fleet::Fleet;
use crate::end::End;
use crate::metrics::Meter;
use crate::metrics::meter::{CALLER_LEFT, Count};
use crate::proxy::attempt::Job;
use crate::proxy::body::Body;
use crate::proxy::cut::Framing;
use crate::proxy::forward::forward;
use crate::proxy::headers;
use crate::proxy::held::{Held, Work};
use crate::refusal::Refusal;
use crate::request::facts::Facts;
use crate::request::intake::{Budget, IntakeError, Payload, take_in, throw_away};
use crate::request::patience::Patience;
use crate::server::Api;
use crate::trace::Tracing;

/// The largest body of the small endpoints.
const SMALL_BODY: u64 = 64 * 1024;
/// The largest body that is read though nothing depends on it, from whomever.
const UNWANTED_BODY: u64 = 8 << 20;
const JSON: &str = "application/json";

/// What every request needs.
#[derive(Debug)]
pub(crate) struct Gate {
    /// Pools and names.
    pub(crate) fleet: Arc<Fleet>,
    /// Limits of bodies.
    pub(crate) limits: Limits,
    /// Limits of time.
    pub(crate) timeouts: Arc<Timeouts>,
    /// Bytes held.
    pub(crate) budget: Arc<Budget>,
    /// Who may call; everybody when absent.
    pub(crate) keys: Option<Keys>,
    /// Where spans of requests go, if anywhere.
    pub(crate) tracing: Option<Tracing>,
    /// Whether the web page is served.
    pub(crate) page: bool,
    /// Requests that reach no pool.
    pub(crate) meter: Meter,
    /// Callers that left while their body came; their model is not read yet.
    pub(crate) left_early: Count,
    /// Requests refused because too many bytes were held; their model is not read yet.
    pub(crate) buffers_full: Count,
    /// Whether the router is going down.
    pub(crate) draining: AtomicBool,
    /// When it has no more time.
    pub(crate) over: End,
}

/// Where a path leads.
enum Route<'a> {
    Forward { is_llava: bool },
    LlavaAddress,
    Told(Told<'a>),
}

/// What the router says by itself, whatever the body is.
enum Told<'a> {
    Models,
    Model(&'a str),
    LlavaStatus,
    LlavaModels,
    LlavaRefresh,
    Gone(&'static str),
}

impl<'a> Route<'a> {
    fn of(method: &Method, path: &'a str) -> Result<Self, Refusal> {
        let (route, allowed) = match path {
            "/v1/chat/completions" | "/v1/completions" => {
                (Self::Forward { is_llava: false }, "POST")
            }
            "/worker_generate_stream" => (Self::Forward { is_llava: true }, "POST"),
            "/v1/models" => (Self::Told(Told::Models), "GET"),
            "/worker_get_status" => (Self::Told(Told::LlavaStatus), "POST"),
            "/list_models" => (Self::Told(Told::LlavaModels), "POST"),
            "/get_worker_address" => (Self::LlavaAddress, "POST"),
            "/refresh_all_workers" => (Self::Told(Told::LlavaRefresh), "POST"),
            "/register_worker" => (Self::Told(Told::Gone(llava::REGISTER_GONE)), "POST"),
            "/receive_heart_beat" => (Self::Told(Told::Gone(llava::HEART_BEAT_GONE)), "POST"),
            _ => match path.strip_prefix("/v1/models/") {
                Some(id) => (Self::Told(Told::Model(id)), "GET"),
                None => return Err(Refusal::unknown_path()),
            },
        };
        if method.as_str() == allowed {
            Ok(route)
        } else {
            Err(Refusal::wrong_method(allowed))
        }
    }
}

impl Api for Arc<Gate> {
    fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Pin<Box<dyn Future<Output = Response<Body>> + Send>> {
        let gate = Self::clone(self);
        Box::pin(async move {
            let id = headers::request_id(request.headers());
            let mut response = gate.dispatch(request, &id).await;
            let name = HeaderName::from_static(ours::REQUEST_ID);
            response.headers_mut().insert(name, id);
            if gate.draining.load(Ordering::Relaxed) {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            response
        })
    }
}

impl Gate {
    async fn dispatch(&self, request: Request<Incoming>, id: &HeaderValue) -> Response<Body> {
        let (head, body) = request.into_parts();
        if self.page
            && head.method == Method::GET
            && let Some(file) = page::file(head.uri.path())
        {
            return file;
        }
        let answer = match self.route(&head) {
            Ok(Route::Forward { is_llava }) => {
                return self.forward(head, body, is_llava, id).await;
            }
            Ok(Route::LlavaAddress) => self.llava_address(&head.headers, body).await,
            Ok(Route::Told(what)) => {
                self.throw_away(&head.headers, body).await;
                self.told(&what)
            }
            Err(refusal) => {
                self.throw_away(&head.headers, body).await;
                Err(refusal)
            }
        };
        match answer {
            Ok(json) => {
                self.meter.answered(200);
                let mut response = Response::new(Body::full(json));
                let kind = HeaderValue::from_static(JSON);
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
                response
            }
            Err(refusal) => self.refuse(refusal),
        }
    }

    /// Where an admitted request leads.
    fn route<'a>(&self, head: &'a Parts) -> Result<Route<'a>, Refusal> {
        let keys = self.keys.as_ref();
        if keys.is_some_and(|keys| !keys.admit(&head.headers)) {
            return Err(Refusal::wrong_key());
        }
        Route::of(&head.method, head.uri.path())
    }

    /// Reads what nothing depends on, so that its caller comes to read the answer.
    async fn throw_away(&self, headers: &HeaderMap, body: Incoming) {
        let patience = self.patience(self.timeouts.body_timeout, shell::clock::now());
        throw_away(headers, body, UNWANTED_BODY, patience).await;
    }

    fn told(&self, what: &Told<'_>) -> Result<Bytes, Refusal> {
        let directory = self.fleet.directory();
        match *what {
            Told::Models => Ok(models::list(&directory)),
            Told::Model(id) => {
                let id = percent_decoded(id);
                models::one(&directory, &id).ok_or_else(|| Refusal::unknown_model(&id))
            }
            Told::LlavaStatus => Ok(llava::status(&directory)),
            Told::LlavaModels => Ok(llava::list_models(&directory)),
            Told::LlavaRefresh => Ok(Bytes::from_static(b"null")),
            Told::Gone(message) => Err(Refusal::gone(message)),
        }
    }

    async fn forward(
        &self,
        mut head: Parts,
        body: Incoming,
        is_llava: bool,
        id: &HeaderValue,
    ) -> Response<Body> {
        let started = shell::clock::now();
        let span = self
            .tracing
            .as_ref()
            .map(|tracing| tracing.begin(head.uri.path(), &mut head.headers));
        let refuse = |refusal: Refusal| {
            self.meter.answered(refusal.status.as_u16());
            if let Some(span) = &span {
                span.answered(refusal.status);
            }
            refusal
        };
        let total = asked_timeout(&head.headers).map_or(self.timeouts.request_timeout, |t| {
            t.min(self.timeouts.request_timeout)
        });
        let patience = self.patience(total, started);
        let taken = self.take_in(&head.headers, body, self.limits.max_body, patience);
        let (payload, mut facts) = match taken.await {
            Ok(taken) => taken,
            Err(refusal) => return refuse(refusal).into_response(),
        };
        let Some(model) = facts.model.take() else {
            return refuse(Refusal::missing_model()).into_response();
        };
        if let Some(span) = &span {
            span.model(&model);
        }
        // Not earlier: models come and go while a body arrives.
        let Some(pool) = self.fleet.directory().pool(&model).cloned() else {
            return refused(refuse(Refusal::unknown_model(&model)), is_llava);
        };
        pool.meter.body_bytes.add(payload.len());
        let mut headers = head.headers;
        headers::towards_worker(&mut headers, id);
        let path = head.uri.into_parts().path_and_query;
        let deadline = started + total;
        let framing = match (is_llava, facts.stream) {
            (true, _) => Framing::Nul,
            (false, true) => Framing::Sse,
            (false, false) => Framing::Opaque,
        };
        let job = Job {
            uri: path.map(Into::into).unwrap_or_default(),
            headers,
            payload,
            span,
            model,
            is_llava,
            streams: framing != Framing::Opaque,
            started,
            deadline,
            timeouts: Arc::clone(&self.timeouts),
            over: self.over.clone(),
        };
        let tokens = facts.tokens();
        let work = forward(pool, job, tokens);
        let done = if framing == Framing::Opaque {
            work.await
        } else {
            let mut work: Work = Box::pin(work);
            let patience = framing.pause(self.timeouts.keep_alive);
            match tokio::time::timeout(patience, &mut work).await {
                Ok(done) => done,
                Err(_) => return begun(work, framing, patience, deadline),
            }
        };
        done.unwrap_or_else(|refusal| refused(refusal, is_llava))
    }

    fn patience(&self, total: Duration, since: Instant) -> Patience {
        Patience {
            stall: self.timeouts.body_timeout,
            rate: self.limits.min_body_rate,
            total,
            since,
        }
    }

    async fn take_in(
        &self,
        headers: &HeaderMap,
        body: Incoming,
        max: u64,
        patience: Patience,
    ) -> Result<(Payload, Facts), Refusal> {
        let leaving = Leaving(Some(self));
        let mut over = self.over.wait();
        let taken = tokio::select! {
            biased;
            taken = take_in(headers, body, &self.budget, max, patience) => Some(taken),
            () = over.over() => None,
        };
        leaving.stayed();
        let taken = taken.ok_or_else(Refusal::draining)?;
        taken.map_err(|error| {
            match error {
                IntakeError::Aborted => self.left_early.up(),
                IntakeError::BuffersFull => self.buffers_full.up(),
                _ => {}
            }
            Refusal::intake(&error)
        })
    }

    async fn llava_address(&self, headers: &HeaderMap, body: Incoming) -> Result<Bytes, Refusal> {
        let patience = self.patience(self.timeouts.request_timeout, shell::clock::now());
        let (payload, facts) = self.take_in(headers, body, SMALL_BODY, patience).await?;
        drop(payload);
        let model = facts.model.ok_or_else(Refusal::missing_model)?;
        let host = headers
            .get(header::HOST)
            .and_then(|host| host.to_str().ok());
        Ok(llava::address(&self.fleet.directory(), host, &model))
    }

    fn refuse(&self, refusal: Refusal) -> Response<Body> {
        self.meter.answered(refusal.status.as_u16());
        refusal.into_response()
    }
}

/// Notes a caller that leaves while its body is being taken in.
struct Leaving<'a>(Option<&'a Gate>);

impl Leaving<'_> {
    fn stayed(mut self) {
        self.0 = None;
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if let Some(gate) = self.0 {
            gate.left_early.up();
            gate.meter.answered(CALLER_LEFT);
        }
    }
}

/// A refusal as the client of this path reads it. LLaVA's clients look at the
/// code in the frame, not at the status, and expect 200 with it, except that a
/// refusal for load must say when to come back.
fn refused(refusal: Refusal, is_llava: bool) -> Response<Body> {
    if !is_llava {
        return refusal.into_response();
    }
    let frame = Framing::Nul.error(&refusal.error, refusal.llava_code());
    let mut response = refusal.respond(Body::Full(frame), "application/octet-stream");
    if refusal.retry_after.is_none() {
        *response.status_mut() = http::StatusCode::OK;
    }
    response
}

/// The head of a stream whose first byte is not there yet.
fn begun(work: Work, framing: Framing, every: Duration, deadline: Instant) -> Response<Body> {
    let held = Held::new(work, framing, every, deadline);
    let mut response = Response::new(Body::Held(Box::new(held)));
    if framing == Framing::Sse {
        let headers = response.headers_mut();
        let kind = HeaderValue::from_static(protocol::sse::CONTENT_TYPE);
        headers.insert(header::CONTENT_TYPE, kind);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        let name = HeaderName::from_static("x-accel-buffering");
        headers.insert(name, HeaderValue::from_static("no"));
    }
    response
}

/// `x-request-timeout`, in seconds.
fn asked_timeout(headers: &HeaderMap) -> Option<Duration> {
    let seconds: f64 = headers
        .get(ours::REQUEST_TIMEOUT)?
        .to_str()
        .ok()?
        .parse()
        .ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// Names of models hold slashes, which some clients escape.
fn percent_decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let hex = tail.get(..2).filter(|_| byte == b'%');
        let escaped = hex
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push(escaped.unwrap_or(byte));
        rest = if escaped.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&out).into_owned()
}
