//! What every handler shares, the routes, and what is done around each request:
//! an id, the load header, counting, and a net under panics.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::FutureExt;
use http::HeaderValue;
use protocol::header::{LOAD, REQUEST_ID};
use shell::clock;

use super::arrival::HeadCame;
use super::body;
use super::buffers::Buffers;
use super::gate::Gate;
use super::images::ImageReader;
use super::limits::LimitArgs;
use super::metrics::HttpMetrics;
use super::refusal::{Refusal, RefusedWith};
use super::status::Status;
use super::texts::Texts;
use super::{chat, completions, info, llava};
use crate::engine::EngineHandle;

/// What every handler shares.
pub(super) struct App {
    /// The names that requests may use, the model's own first.
    pub names: Vec<String>,
    /// When the process started, Unix seconds.
    pub created: u64,
    /// Bounds on requests.
    pub limits: LimitArgs,
    /// Longest sequence in tokens.
    pub context: usize,
    /// Tokens of the vocabulary, padding included.
    pub vocab: usize,
    /// Tokenizer and template.
    pub texts: Arc<dyn Texts>,
    /// Reads images.
    pub images: ImageReader,
    /// Makes tokens.
    pub engine: EngineHandle,
    /// Who may come in.
    pub gate: Gate,
    /// What all may bring.
    pub buffers: Buffers,
    /// Where the process stands, and its load.
    pub status: Status,
    /// Counts requests.
    pub metrics: HttpMetrics,
}

/// A shared [`App`].
pub(super) type Shared = Arc<App>;

/// All routes. Whatever is not listed is 404.
pub(super) fn routes(app: Shared) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat::handle))
        .route("/v1/completions", post(completions::handle))
        .route("/v1/models", get(info::models))
        .route("/v1/models/{*name}", get(info::model))
        .route("/v1/load", get(info::load))
        .route("/tokenize", post(info::tokenize))
        .route("/worker_generate_stream", post(llava::generate))
        .route("/worker_get_status", post(llava::status))
        .fallback(async |request: Request| unread(request, Refusal::unknown_path()).await)
        .method_not_allowed_fallback(async |request: Request| {
            unread(request, Refusal::wrong_method()).await
        })
        // Bodies are bounded where they are read, by our own limits.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn(net))
        .layer(from_fn_with_state(Arc::clone(&app), around))
        .with_state(app)
}

/// Refuses a request whatever its body says.
async fn unread(request: Request, refusal: Refusal) -> Refusal {
    let (parts, body) = request.into_parts();
    body::leave_unread(&parts.headers, body).await;
    refusal
}

/// A panic ends its request and nothing else.
async fn net(request: Request, next: Next) -> Response {
    let answer = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    answer.unwrap_or_else(|_| {
        tracing::error!("a handler panicked; its request ends");
        Refusal::internal().into_response()
    })
}

async fn around(State(app): State<Shared>, mut request: Request, next: Next) -> Response {
    let began = clock::now();
    request.extensions_mut().insert(HeadCame(began));
    let id = request_id(&request);
    let path = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("other", MatchedPath::as_str)
        .to_owned();
    let mut response = next.run(request).await;
    let status = response.status();
    let refused = response.extensions().get::<RefusedWith>().cloned();
    app.metrics.count(
        &path,
        status.as_u16(),
        refused.as_ref().map(|refused| refused.0.as_str()),
    );
    let millis = clock::now().saturating_duration_since(began).as_millis();
    let code = refused.map(|refused| refused.0).unwrap_or_default();
    let request_id = id.to_str().unwrap_or_default();
    tracing::debug!(
        path,
        status = status.as_u16(),
        code,
        millis,
        request_id,
        "answered"
    );
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id);
    if let Some(load) = load_header(&app) {
        headers.insert(LOAD, load);
    }
    response
}

fn load_header(app: &App) -> Option<HeaderValue> {
    let json = serde_json::to_string(&app.status.load()).ok()?;
    HeaderValue::from_str(&json).ok()
}

/// The client's id if it is fit for a log line, else one of ours.
fn request_id(request: &Request) -> HeaderValue {
    request
        .headers()
        .get(REQUEST_ID)
        .filter(|id| {
            let bytes = id.as_bytes();
            (1..=128).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
        })
        .cloned()
        .unwrap_or_else(|| {
            HeaderValue::from_str(&unique("req")).unwrap_or(HeaderValue::from_static("req"))
        })
}

/// A name that no other request has.
pub(super) fn unique(prefix: &str) -> String {
    format!("{prefix}-{:032x}", rand::random::<u128>())
}

impl App {
    /// Checks that the model asked for is the one that is served; gives the name to answer with.
    ///
    /// # Errors
    /// 404.
    pub(super) fn model(&self, name: Option<&str>) -> Result<String, Refusal> {
        match name {
            None => Ok(self.names.first().cloned().unwrap_or_default()),
            Some(name) if self.names.iter().any(|known| known == name) => Ok(name.to_owned()),
            Some(name) => Err(Refusal::unknown_model(name)),
        }
    }

    /// Refuses texts that are too long to be tokenised.
    ///
    /// # Errors
    /// 400 `prompt_too_long`.
    pub(super) fn within_characters(&self, characters: usize, param: &str) -> Result<(), Refusal> {
        let limit = self.limits.max_prompt_characters;
        if characters > limit {
            let message =
                format!("the text counts {characters} characters, above the limit of {limit}");
            return Err(Refusal::invalid("prompt_too_long", Some(param), message));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use hyper::service::Service;
    use hyper_util::service::TowerToHyperService;

    use super::*;

    #[tokio::test]
    async fn a_handler_that_panics_is_a_500_and_the_next_request_is_answered() {
        let fails = async || -> &'static str { panic!("as asked") };
        let routes = Router::new()
            .route("/fails", get(fails))
            .route("/works", get(async || "fine"))
            .layer(from_fn(net));
        let service = TowerToHyperService::new(routes);
        let ask = async |path: &str| {
            let request = Request::get(path).body(Body::empty()).unwrap();
            service.call(request).await.unwrap().status().as_u16()
        };
        assert_eq!(ask("/fails").await, 500);
        assert_eq!(ask("/works").await, 200);
    }
}
