//! Fetching from a hub on this machine: the cache layout, going on after a cut,
//! checking what came, and doing without the network.

mod bucket;
mod buckets;
mod hub;

use std::fs;
use std::sync::Mutex;

use hub::{COMMIT, Hub};
use llava_worker::fetch::{Event, FetchError, Fetcher, Source};
use sha2::{Digest, Sha256};

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Longer than two parts, so that several ranges are asked for.
fn weights() -> Vec<u8> {
    (0..40_000_000_u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

fn source(text: &str) -> Source {
    text.parse().unwrap()
}

/// Why a source is not fetched into an empty cache, and that cache.
async fn refusal(hub: &Hub, text: &str) -> (String, tempfile::TempDir) {
    let cache = tempfile::tempdir().unwrap();
    let fetcher = Fetcher::new(cache.path(), &hub.url, None).unwrap();
    let refused = fetcher.resolve(&source(text), &|_| ()).await;
    (refused.unwrap_err().to_string(), cache)
}

#[tokio::test]
async fn a_snapshot_lies_in_the_hubs_own_cache_layout_and_then_needs_no_hub() {
    let hub = Hub::start([
        ("config.json", b"{}".to_vec()),
        ("model.safetensors", weights()),
        ("pytorch_model.bin", vec![1]),
    ])
    .await;
    let cache = tempfile::tempdir().unwrap();
    let fetcher = Fetcher::new(cache.path(), &hub.url, None).unwrap();
    let path = fetcher
        .resolve(&source("hf://owner/name"), &|_| ())
        .await
        .unwrap();

    let repository = cache.path().join("models--owner--name");
    assert_eq!(path, repository.join("snapshots").join(COMMIT));
    assert_eq!(
        fs::read_to_string(repository.join("refs/main")).unwrap(),
        COMMIT
    );
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), weights());
    assert!(path.join("config.json").is_symlink());
    assert!(
        !path.join("pytorch_model.bin").exists(),
        "pickled weights are left where safe ones are"
    );
    let blobs: Vec<_> = fs::read_dir(repository.join("blobs"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(blobs.len(), 2, "nothing half done stays: {blobs:?}");

    let url = hub.stop().await;
    let fetcher = Fetcher::new(cache.path(), &url, None).unwrap();
    for text in [
        "hf://owner/name".to_owned(),
        format!("hf://owner/name@{COMMIT}"),
    ] {
        assert_eq!(
            fetcher.resolve(&source(&text), &|_| ()).await.unwrap(),
            path
        );
    }
}

#[tokio::test]
async fn of_two_that_fetch_the_same_the_second_waits_and_finds_it() {
    let hub = Hub::start([
        ("config.json", b"{}".to_vec()),
        ("model.safetensors", weights()),
    ])
    .await;
    let cache = tempfile::tempdir().unwrap();
    let fetcher = || Fetcher::new(cache.path(), &hub.url, None).unwrap();
    let (first, second) = (fetcher(), fetcher());
    let from = source("hf://owner/name");
    let (first, second) = tokio::join!(
        first.resolve(&from, &|_| ()),
        second.resolve(&from, &|_| ())
    );
    assert_eq!(first.unwrap(), second.unwrap());
    assert_eq!(hub.sent(), 40_000_002, "each file came once");
    let file = source(&format!(
        "{}/owner/name/resolve/{COMMIT}/model.safetensors#sha256={}",
        hub.url,
        hex(&weights())
    ));
    let (one, other) = (fetcher(), fetcher());
    let (one, other) = tokio::join!(one.resolve(&file, &|_| ()), other.resolve(&file, &|_| ()));
    assert_eq!(one.unwrap(), other.unwrap());
    assert_eq!(hub.sent(), 80_000_002);
}

#[tokio::test]
async fn a_cut_download_goes_on_where_it_was() {
    let hub = Hub::start([
        ("config.json", b"{}".to_vec()),
        ("model.safetensors", weights()),
    ])
    .await;
    let cache = tempfile::tempdir().unwrap();
    let fetcher = Fetcher::new(cache.path(), &hub.url, None).unwrap();
    // The last part is refused for good, the others come.
    hub.refuse_from(32 << 20);
    let error = fetcher
        .resolve(&source("hf://owner/name"), &|_| ())
        .await
        .unwrap_err();
    assert!(
        matches!(error, FetchError::Status { status: 403, .. }),
        "{error}"
    );
    let before = hub.sent();
    hub.refuse_from(u64::MAX);
    let path = fetcher
        .resolve(&source("hf://owner/name"), &|_| ())
        .await
        .unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), weights());
    // The first answer's part is asked for again to learn the length; the second part is not.
    assert!(
        hub.sent() - before < 40_000_000,
        "{} bytes were sent again",
        hub.sent() - before
    );
}

#[tokio::test]
async fn a_file_with_another_digest_is_refused_and_not_kept() {
    let hub = Hub::start([("model.safetensors", weights())]).await;
    hub.lie_about_digests();
    let (error, cache) = refusal(&hub, "hf://owner/name").await;
    assert!(error.contains("SHA-256"), "{error}");
    let repository = cache.path().join("models--owner--name");
    assert!(!repository.join("snapshots").join(COMMIT).exists());
    assert_eq!(fs::read_dir(repository.join("blobs")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_small_file_is_checked_by_its_id_in_git() {
    let hub = Hub::start([("config.json", b"{}".to_vec())]).await;
    hub.lie_about_digests();
    let (error, cache) = refusal(&hub, "hf://owner/name").await;
    // What `git hash-object` says of `{}`.
    assert!(
        error.contains("its Git blob 9e26dfeeb6e641a33dae4961196235bdb965b21b is not the promised"),
        "{error}"
    );
    let repository = cache.path().join("models--owner--name");
    assert_eq!(fs::read_dir(repository.join("blobs")).unwrap().count(), 0);
}

#[tokio::test]
async fn an_empty_file_is_fetched_though_it_has_no_range() {
    let hub = Hub::start([
        ("config.json", b"{}".to_vec()),
        ("added_tokens.json", Vec::new()),
        ("empty.model", Vec::new()),
    ])
    .await;
    let cache = tempfile::tempdir().unwrap();
    let fetcher = Fetcher::new(cache.path(), &hub.url, None).unwrap();
    let path = fetcher
        .resolve(&source("hf://owner/name"), &|_| ())
        .await
        .unwrap();
    for name in ["added_tokens.json", "empty.model"] {
        assert_eq!(fs::read(path.join(name)).unwrap(), b"", "{name}");
    }
    let url = format!("{}/owner/name/resolve/{COMMIT}/empty.model", hub.url);
    let alone = source(&format!("{url}#sha256={}", hex(b"")));
    let path = fetcher.resolve(&alone, &|_| ()).await.unwrap();
    assert_eq!(fs::read(path).unwrap(), b"");
}

#[tokio::test]
async fn several_ranges_of_a_file_are_under_way_at_once() {
    let hub = Hub::start([("model.safetensors", weights())]).await;
    // The two parts behind the first wait for each other: one after another they would never come.
    hub.answer_together(2);
    let cache = tempfile::tempdir().unwrap();
    let fetcher = Fetcher::new(cache.path(), &hub.url, None).unwrap();
    let path = fetcher
        .resolve(&source("hf://owner/name"), &|_| ())
        .await
        .unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), weights());
}

#[tokio::test]
async fn a_moment_of_errors_is_waited_out() {
    let hub = Hub::start([("config.json", b"{}".to_vec())]).await;
    let cache = tempfile::tempdir().unwrap();
    let fetcher = Fetcher::new(cache.path(), &hub.url, None).unwrap();
    // The listing fails twice, then it comes, and so does the file.
    hub.fail(2);
    let path = fetcher
        .resolve(&source("hf://owner/name"), &|_| ())
        .await
        .unwrap();
    assert_eq!(fs::read(path.join("config.json")).unwrap(), b"{}");
}

#[tokio::test]
async fn a_hub_that_fails_or_is_gone_leaves_what_was_fetched_and_it_is_said() {
    let hub = Hub::start([("config.json", b"{}".to_vec())]).await;
    let cache = tempfile::tempdir().unwrap();
    let fetcher = Fetcher::new(cache.path(), &hub.url, None).unwrap();
    let from = source("hf://owner/name");
    let path = fetcher.resolve(&from, &|_| ()).await.unwrap();
    let told = Mutex::new(Vec::new());
    let listen = |event| {
        if let Event::Cached { why, path } = event {
            told.lock().unwrap().push((why, path));
        }
    };
    hub.fail(1);
    assert_eq!(fetcher.resolve(&from, &listen).await.unwrap(), path);
    let url = hub.stop().await;
    let fetcher = Fetcher::new(cache.path(), &url, None).unwrap();
    assert_eq!(fetcher.resolve(&from, &listen).await.unwrap(), path);
    // Of another revision nothing is here.
    let other = source("hf://owner/name@other");
    assert!(fetcher.resolve(&other, &listen).await.is_err());
    let told = told.into_inner().unwrap();
    let [(failed, used), (gone, _)] = &told[..] else {
        panic!("{told:?}")
    };
    assert!(failed.ends_with("the server answered 503"), "{failed}");
    assert!(gone.contains(&url) && gone.contains("refused"), "{gone}");
    assert_eq!(used, &path);
}

#[tokio::test]
async fn a_name_that_leads_out_of_the_cache_is_refused() {
    let hub = Hub::start([("../../evil.json", b"{}".to_vec())]).await;
    let (error, _) = refusal(&hub, "hf://owner/name").await;
    assert!(error.contains("leads out of the folder"), "{error}");
}

#[tokio::test]
async fn an_unknown_repository_says_what_to_check() {
    let hub = Hub::start([]).await;
    let (error, _) = refusal(&hub, "hf://owner/other").await;
    assert!(
        error.ends_with("404: check the name and the revision"),
        "{error}"
    );
}

#[tokio::test]
async fn a_file_by_http_is_kept_under_its_digest() {
    let hub = Hub::start([("a.json", b"{}".to_vec())]).await;
    let cache = tempfile::tempdir().unwrap();
    let fetcher = Fetcher::new(cache.path(), &hub.url, None).unwrap();
    let url = format!("{}/owner/name/resolve/{COMMIT}/a.json", hub.url);
    let good = source(&format!("{url}#sha256={}", hex(b"{}")));
    let path = fetcher.resolve(&good, &|_| ()).await.unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"{}");
    let wrong = source(&format!("{url}#sha256={}", hex(b"other")));
    assert!(fetcher.resolve(&wrong, &|_| ()).await.is_err());
    let url = hub.stop().await;
    let fetcher = Fetcher::new(cache.path(), &url, None).unwrap();
    assert_eq!(fetcher.resolve(&good, &|_| ()).await.unwrap(), path);
}
