//! A hub with one repository, `owner/name`, that can be made to misbehave. As on the real one, only weights are
//! large files with a SHA-256; others have an id in Git.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::hex;

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

struct Shelf {
    files: HashMap<&'static str, Vec<u8>>,
    refuse_from: AtomicU64,
    lies: AtomicBool,
    sent: AtomicU64,
    /// Requests that are answered with an error first.
    failing: AtomicU64,
    /// Ranges that wait for each other before any is answered.
    together: watch::Sender<usize>,
    gathering: AtomicUsize,
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
            failing: AtomicU64::new(0),
            together: watch::Sender::new(0),
            gathering: AtomicUsize::new(0),
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

    /// The next `requests` are answered with 503.
    pub(crate) fn fail(&self, requests: u64) {
        self.shelf.failing.store(requests, Ordering::SeqCst);
    }

    /// No range behind a file's first is answered before `ranges` of them have been asked for.
    pub(crate) fn answer_together(&self, ranges: usize) {
        self.shelf.gathering.store(ranges, Ordering::SeqCst);
    }

    /// Bytes sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.shelf.sent.load(Ordering::SeqCst)
    }
}

impl Shelf {
    fn fails(&self) -> bool {
        let one_less = |left: u64| left.checked_sub(1);
        let (set, read) = (Ordering::SeqCst, Ordering::SeqCst);
        self.failing.fetch_update(set, read, one_less).is_ok()
    }

    /// Waits until as many ranges as wished have come.
    async fn gather(&self) {
        let wished = self.gathering.load(Ordering::SeqCst);
        let mut come = self.together.subscribe();
        self.together.send_modify(|come| *come += 1);
        come.wait_for(|come| *come >= wished).await.unwrap();
    }
}

/// What `git hash-object` says.
fn blob(bytes: &[u8]) -> String {
    use sha1::Digest;
    let mut digest = sha1::Sha1::new();
    digest.update(format!("blob {}\0", bytes.len()));
    digest.update(bytes);
    let digest = digest.finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn listing(State(shelf): State<Arc<Shelf>>) -> Response {
    if shelf.fails() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let lies = shelf.lies.load(Ordering::SeqCst);
    let siblings: Vec<_> = shelf
        .files
        .iter()
        .map(|(name, bytes)| {
            let told: &[u8] = if lies { b"something else" } else { bytes };
            let mut file = json!({ "rfilename": name, "size": bytes.len(), "blobId": blob(told) });
            if !name.ends_with(".json") {
                file["blobId"] = json!(COMMIT);
                file["lfs"] = json!({ "sha256": hex(told) });
            }
            file
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
    if shelf.fails() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let start: u64 = range.0.parse().unwrap();
    if start >= bytes.len() as u64 {
        return StatusCode::RANGE_NOT_SATISFIABLE.into_response();
    }
    let end = range.1.parse::<u64>().unwrap().min(bytes.len() as u64 - 1);
    if start > 0 {
        shelf.gather().await;
    }
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
