//! What a worker writes into its Lease, seen by an API server that knows nothing else.

use std::sync::Arc;

use axum::Json;
use axum::Router;
use protocol::load::{LEASE_ANNOTATION, LoadReport, Phase};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::worker::Worker;

/// An API server that takes any renewal, but answers those of a serving worker only once it is let.
struct ApiServer {
    said: watch::Receiver<Vec<Phase>>,
    may_answer: Arc<watch::Sender<bool>>,
    kubeconfig: tempfile::NamedTempFile,
}

impl ApiServer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let (say, said) = watch::channel(Vec::new());
        let may_answer = Arc::new(watch::Sender::new(false));
        let gate = Arc::clone(&may_answer);
        let renewed = async move |Json(patch): Json<Value>| {
            let annotation = &patch["metadata"]["annotations"][LEASE_ANNOTATION];
            let load: LoadReport = serde_json::from_str(annotation.as_str().unwrap()).unwrap();
            say.send_modify(|said| said.push(load.phase));
            if load.phase == Phase::Serving {
                gate.subscribe().wait_for(|may| *may).await.unwrap();
            }
            Json(json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {}}))
        };
        let routes = Router::new().fallback(renewed);
        tokio::spawn(async move { axum::serve(listener, routes).await });
        let kubeconfig = tempfile::NamedTempFile::new().unwrap();
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{"name": "it", "cluster": {"server": server}}],
            "users": [{"name": "it", "user": {}}],
            "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        });
        std::fs::write(kubeconfig.path(), config.to_string()).unwrap();
        Self {
            said,
            may_answer,
            kubeconfig,
        }
    }

    fn said(&self, phase: Phase) -> bool {
        self.said.borrow().contains(&phase)
    }
}

/// A worker that serves and whose renewal of that is under way, which keeps the next from being sent.
async fn serving(server: &ApiServer) -> Worker {
    let variables = [
        ("KUBECONFIG", server.kubeconfig.path().to_str().unwrap()),
        ("POD_NAME", "worker-0"),
        ("POD_NAMESPACE", "here"),
        ("POD_UID", "7"),
    ];
    let worker = Worker::spawn_demo_with(&variables, &["--lease"]);
    let says_so = async || server.said(Phase::Serving);
    worker.until("the Lease says serving", says_so).await;
    worker.until("ready", async || worker.ready().await).await;
    worker
}

#[tokio::test]
async fn a_worker_with_nothing_to_finish_says_that_it_drains_before_it_ends() {
    let server = ApiServer::start().await;
    let mut worker = serving(&server).await;
    worker.terminate();
    worker
        .until("unready", async || !worker.ready().await)
        .await;
    server.may_answer.send_replace(true);
    assert!(worker.ended().await.success());
    assert!(server.said(Phase::Draining), "{:?}", server.said.borrow());
}

#[tokio::test]
async fn an_api_server_that_does_not_answer_keeps_no_worker_from_ending() {
    let server = ApiServer::start().await;
    let mut worker = serving(&server).await;
    worker.terminate();
    assert!(worker.ended().await.success());
}
