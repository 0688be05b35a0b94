//! An API server for unit tests: it answers as it is told and remembers what it was asked.

use std::sync::{Arc, Mutex};

use http::{Method, Request, Response};
use kube::Client;
use kube::client::Body;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tower::BoxError;

use crate::context::Context;
use crate::deployment::check::tests::settings;
use crate::effects::Effects;
use crate::leader::Claim;
use crate::metrics::Metrics;
use crate::world::World;

/// What it was asked.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) body: Value,
}

/// What it says; nothing for no answer at all.
pub(crate) type Answer = Option<(u16, Value)>;

/// The server. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fake {
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Fake {
    /// A client to whom it answers so.
    pub(crate) fn client(
        &self,
        answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
    ) -> Client {
        let (all, answer) = (self.asked.clone(), Arc::new(answer));
        let server = tower::service_fn(move |request: Request<Body>| {
            let (all, answer) = (all.clone(), answer.clone());
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect_bytes().await?;
                let asked = Asked {
                    method: head.method,
                    path: head.uri.path().to_owned(),
                    body: serde_json::from_slice(&body).unwrap_or_default(),
                };
                let said = answer(&asked);
                all.lock().unwrap().push(asked);
                let Some((code, said)) = said else {
                    return std::future::pending().await;
                };
                let said = Body::from(said.to_string().into_bytes());
                Ok::<_, BoxError>(Response::builder().status(code).body(said)?)
            }
        });
        Client::new(server, "default")
    }

    /// What it was asked with this method about paths that end so.
    pub(crate) fn asked(&self, method: &Method, end: &str) -> Vec<Asked> {
        let mut all = self.asked.lock().unwrap().clone();
        all.retain(|asked| asked.method == *method && asked.path.ends_with(end));
        all
    }
}

/// The API server's way to say no.
pub(crate) fn refusal(code: u16, reason: &str) -> Answer {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "as planned", "reason": reason, "code": code,
    });
    Some((code, status))
}

/// What both controllers share, with caches that see nothing.
pub(crate) fn context(client: &Client) -> Context {
    let settings = settings();
    let metrics = Metrics::register(&mut Registry::default());
    let claim = Claim::always();
    let effects = Effects::new(client.clone(), claim, &settings, None, metrics.clone());
    let (world, _, _) = World::watch(client, &settings.scope, &settings.router_namespace);
    Context::new(world, effects, metrics, settings)
}
