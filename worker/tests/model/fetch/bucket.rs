//! An object store with one bucket that speaks S3's protocol, as MinIO does, and the
//! part of it that Google's and Azure's clients use.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use llava_worker::fetch::Settings;
use tokio::task::JoinHandle;

pub(crate) const KEY: &str = "AKIAEXAMPLE";

struct Shelf {
    /// Contents and version of each object.
    objects: Mutex<BTreeMap<String, (Vec<u8>, u64)>>,
    refuse_from: AtomicU64,
    /// Each object gets another version once it was listed.
    restless: AtomicBool,
    sent: AtomicU64,
}

pub(crate) struct Bucket {
    pub(crate) url: String,
    shelf: Arc<Shelf>,
    task: JoinHandle<()>,
}

impl Bucket {
    pub(crate) async fn start<const N: usize>(objects: [(&str, Vec<u8>); N]) -> Self {
        let objects = objects.map(|(name, bytes)| (name.to_owned(), (bytes, 1)));
        let shelf = Arc::new(Shelf {
            objects: Mutex::new(objects.into()),
            refuse_from: AtomicU64::new(u64::MAX),
            restless: AtomicBool::new(false),
            sent: AtomicU64::new(0),
        });
        let app = Router::new()
            .route("/models", get(list))
            .route("/models/{*object}", get(object))
            .with_state(Arc::clone(&shelf));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { url, shelf, task }
    }

    /// What a user's Secret holds for it.
    pub(crate) fn settings(&self) -> Settings {
        settings(&self.url, KEY)
    }

    pub(crate) fn put(&self, name: &str, bytes: &[u8]) {
        let mut objects = self.shelf.objects.lock().unwrap();
        let version = objects.get(name).map_or(1, |(_, version)| version + 1);
        objects.insert(name.to_owned(), (bytes.to_vec(), version));
    }

    pub(crate) fn refuse_from(&self, byte: u64) {
        self.shelf.refuse_from.store(byte, Ordering::SeqCst);
    }

    pub(crate) fn change_after_listing(&self) {
        self.shelf.restless.store(true, Ordering::SeqCst);
    }

    /// Bytes sent so far.
    pub(crate) fn sent(&self) -> u64 {
        self.shelf.sent.load(Ordering::SeqCst)
    }

    /// From now on nothing listens at its address.
    pub(crate) async fn stop(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

pub(crate) fn settings(url: &str, key: &str) -> Settings {
    let text = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    [
        ("AWS_ENDPOINT_URL", url),
        ("AWS_ACCESS_KEY_ID", key),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("GOOGLE_BASE_URL", url),
        ("GOOGLE_BEARER_TOKEN", key),
        ("AZURE_STORAGE_ENDPOINT", url),
        ("AZURE_STORAGE_ACCOUNT_NAME", key),
        ("AZURE_STORAGE_ACCOUNT_KEY", "c2VjcmV0"),
    ]
    .map(text)
    .into()
}

fn refused(status: StatusCode, code: &str) -> Response {
    let body = format!("<Error><Code>{code}</Code><Message>{code}</Message></Error>");
    (status, body).into_response()
}

/// Whether a request carries the right name; the signatures are the library's business.
fn allowed(headers: &HeaderMap) -> bool {
    let given = headers
        .get("authorization")
        .and_then(|value| value.to_str().ok());
    given.is_some_and(|given| given.contains(KEY))
}

async fn list(
    State(shelf): State<Arc<Shelf>>,
    Query(query): Query<BTreeMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    if !allowed(&headers) {
        return refused(StatusCode::FORBIDDEN, "AccessDenied");
    }
    let mut objects = shelf.objects.lock().unwrap();
    let prefix = &query["prefix"];
    let azure = query.get("comp").is_some_and(|comp| comp == "list");
    let mut found = String::new();
    for (name, (bytes, version)) in objects.iter_mut() {
        if !name.starts_with(prefix) {
            continue;
        }
        let size = bytes.len();
        if azure {
            let properties = format!(
                "<Last-Modified>Thu, 01 Jan 2026 00:00:00 GMT</Last-Modified><Content-Length>{size}</Content-Length>\
                 <Content-Type>text/plain</Content-Type><Etag>v{version}</Etag>"
            );
            write!(
                found,
                "<Blob><Name>{name}</Name><Properties>{properties}</Properties></Blob>"
            )
            .unwrap();
        } else {
            write!(
                found,
                "<Contents><Key>{name}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>\
                 <ETag>\"v{version}\"</ETag><Size>{size}</Size></Contents>"
            )
            .unwrap();
        }
        if shelf.restless.load(Ordering::SeqCst) {
            *version += 1;
        }
    }
    let body = if azure {
        format!("<EnumerationResults><Blobs>{found}</Blobs><NextMarker/></EnumerationResults>")
    } else {
        format!("<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>")
    };
    body.into_response()
}

async fn object(
    State(shelf): State<Arc<Shelf>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    if !allowed(&headers) {
        return refused(StatusCode::FORBIDDEN, "AccessDenied");
    }
    let objects = shelf.objects.lock().unwrap();
    let Some((bytes, version)) = objects.get(&name) else {
        return refused(StatusCode::NOT_FOUND, "NoSuchKey");
    };
    let tag = format!("\"v{version}\"");
    let wanted = headers
        .get("if-match")
        .and_then(|value| value.to_str().ok());
    if wanted.is_some_and(|wanted| wanted.trim_matches('"') != tag.trim_matches('"')) {
        return refused(StatusCode::PRECONDITION_FAILED, "PreconditionFailed");
    }
    let range = headers.get("range").or(headers.get("x-ms-range")).unwrap();
    let range = range.to_str().unwrap().strip_prefix("bytes=").unwrap();
    let (start, end) = range.split_once('-').unwrap();
    let start: u64 = start.parse().unwrap();
    let end = end.parse::<u64>().unwrap().min(bytes.len() as u64 - 1);
    if start >= shelf.refuse_from.load(Ordering::SeqCst) {
        return refused(StatusCode::FORBIDDEN, "AccessDenied");
    }
    shelf.sent.fetch_add(end + 1 - start, Ordering::SeqCst);
    let about = [
        (
            "content-range",
            format!("bytes {start}-{end}/{}", bytes.len()),
        ),
        ("etag", tag),
        ("last-modified", "Thu, 01 Jan 2026 00:00:00 GMT".to_owned()),
    ];
    let part = bytes[start as usize..=end as usize].to_vec();
    (StatusCode::PARTIAL_CONTENT, about, part).into_response()
}
