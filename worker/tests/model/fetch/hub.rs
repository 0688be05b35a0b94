//! A hub with one repository, `owner/name`, that can be made to misbehave.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;
use tokio::task::JoinHandle;

use super::hex;

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

struct Shelf {
    files: HashMap<&'static str, Vec<u8>>,
    refuse_from: AtomicU64,
    lies: AtomicBool,
    sent: AtomicU64,
}

pub(crate) struct Hub {
    pub(crate) url: String,
    shelf: Arc<Shelf>,
    task: JoinHandle<()>,
}

impl Hub {
    pub(crate) async fn start<const N: usize>(files: [(&'static str, Vec<u8>); N]) -> Self {
        let shelf = Arc::new(Shelf {
            files: files.into(),
            refuse_from: AtomicU64::new(u64::MAX),
            lies: AtomicBool::new(false),
            sent: AtomicU64::new(0),
        });
        let app = Router::new()
            .route("/api/models/owner/name/revision/{revision}", get(listing))
            .route("/owner/name/resolve/{commit}/{*file}", get(file))
            .with_state(Arc::clone(&shelf));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { url, shelf, task }
    }

    /// From now on nothing listens at the address that is returned.
    pub(crate) async fn stop(self) -> String {
        self.task.abort();
        let _ = self.task.await;
        self.url
    }

    /// Ranges that start at `byte` or behind it are refused.
    pub(crate) fn refuse_from(&self, byte: u64) {
        self.shelf.refuse_from.store(byte, Ordering::SeqCst);
    }

    pub(crate) fn lie_about_digests(&self) {
        self.shelf.lies.store(true, Ordering::SeqCst);
    }

    /// Bytes sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.shelf.sent.load(Ordering::SeqCst)
    }
}

async fn listing(State(shelf): State<Arc<Shelf>>) -> Response {
    let lies = shelf.lies.load(Ordering::SeqCst);
    let siblings: Vec<_> = shelf
        .files
        .iter()
        .map(|(name, bytes)| {
            let digest = if lies { hex(b"something else") } else { hex(bytes) };
            json!({ "rfilename": name, "size": bytes.len(), "blobId": COMMIT, "lfs": { "sha256": digest } })
        })
        .collect();
    json!({ "sha": COMMIT, "siblings": siblings })
        .to_string()
        .into_response()
}

async fn file(
    State(shelf): State<Arc<Shelf>>,
    Path((_, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let Some(bytes) = shelf.files.get(name.as_str()) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let range = headers["range"]
        .to_str()
        .unwrap()
        .strip_prefix("bytes=")
        .unwrap()
        .split_once('-')
        .unwrap();
    let start: u64 = range.0.parse().unwrap();
    let end = range.1.parse::<u64>().unwrap().min(bytes.len() as u64 - 1);
    if start >= shelf.refuse_from.load(Ordering::SeqCst) {
        return StatusCode::FORBIDDEN.into_response();
    }
    shelf.sent.fetch_add(end + 1 - start, Ordering::SeqCst);
    let part = bytes[start as usize..=end as usize].to_vec();
    let content_range = format!("bytes {start}-{end}/{}", bytes.len());
    (
        StatusCode::PARTIAL_CONTENT,
        [("content-range", content_range)],
        part,
    )
        .into_response()
}
