//! Folders of object stores: S3 and its likes, Google's and Azure's.

use std::fs;
use std::path::Path;

use llava_worker::fetch::{FetchError, Fetcher, Settings};

use super::bucket::{Bucket, settings};
use super::{source, weights};

fn fetcher(cache: &Path, settings: Settings) -> Fetcher {
    Fetcher::new(cache, "http://127.0.0.1:9", None)
        .unwrap()
        .with_settings(settings)
}

async fn checkpoint() -> Bucket {
    Bucket::start([
        ("demo/config.json", b"{}".to_vec()),
        ("demo/model.safetensors", weights()),
        ("demo/vision_tower/config.json", b"{ }".to_vec()),
        ("demo/pytorch_model.bin", vec![1]),
        ("demonstration/config.json", b"other".to_vec()),
    ])
    .await
}

#[tokio::test]
async fn a_folder_of_a_bucket_is_fetched_once_and_serves_while_the_store_is_away() {
    let bucket = checkpoint().await;
    let cache = tempfile::tempdir().unwrap();
    let fetcher = fetcher(cache.path(), bucket.settings());
    let from = source("s3://models/demo");
    let path = fetcher.resolve(&from, &|_| ()).await.unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), weights());
    assert_eq!(fs::read(path.join("config.json")).unwrap(), b"{}");
    assert_eq!(
        fs::read(path.join("vision_tower/config.json")).unwrap(),
        b"{ }"
    );
    assert!(!path.join("pytorch_model.bin").exists());
    let sent = bucket.sent();
    assert_eq!(fetcher.resolve(&from, &|_| ()).await.unwrap(), path);
    assert_eq!(bucket.sent(), sent, "what is here is not fetched again");

    // A new version of one file is a new snapshot, and only that file comes.
    bucket.put("demo/config.json", b"{\"a\":1}");
    let newer = fetcher.resolve(&from, &|_| ()).await.unwrap();
    assert_ne!(newer, path);
    assert_eq!(fs::read(newer.join("config.json")).unwrap(), b"{\"a\":1}");
    assert_eq!(bucket.sent(), sent + 7);
    assert_eq!(fs::read(path.join("config.json")).unwrap(), b"{}");

    bucket.stop().await;
    assert_eq!(fetcher.resolve(&from, &|_| ()).await.unwrap(), newer);
}

#[tokio::test]
async fn googles_and_azures_stores_are_read_with_their_own_credentials() {
    let bucket = checkpoint().await;
    let cache = tempfile::tempdir().unwrap();
    for from in ["gs://models/demo", "az://models/demo"] {
        let fetcher = fetcher(cache.path(), bucket.settings());
        let path = fetcher.resolve(&source(from), &|_| ()).await.unwrap();
        assert_eq!(
            fs::read(path.join("model.safetensors")).unwrap(),
            weights(),
            "{from}"
        );
        let fetcher = fetcher_with("wrong", &bucket, cache.path());
        let error = fetcher.resolve(&source(from), &|_| ()).await.unwrap_err();
        assert!(matches!(error, FetchError::Store { .. }), "{from}: {error}");
    }
}

fn fetcher_with(key: &str, bucket: &Bucket, cache: &Path) -> Fetcher {
    fetcher(cache, settings(&bucket.url, key))
}

#[tokio::test]
async fn a_cut_download_from_a_bucket_goes_on_where_it_was() {
    let bucket = checkpoint().await;
    let cache = tempfile::tempdir().unwrap();
    let fetcher = fetcher(cache.path(), bucket.settings());
    let from = source("s3://models/demo/");
    bucket.refuse_from(32 << 20);
    let error = fetcher.resolve(&from, &|_| ()).await.unwrap_err();
    assert!(error.to_string().contains("AWS_ACCESS_KEY_ID"), "{error}");
    let before = bucket.sent();
    bucket.refuse_from(u64::MAX);
    let path = fetcher.resolve(&from, &|_| ()).await.unwrap();
    assert_eq!(fs::read(path.join("model.safetensors")).unwrap(), weights());
    let again = bucket.sent() - before;
    assert!(again < 40_000_000, "{again} bytes were sent again");
}

#[tokio::test]
async fn a_store_that_refuses_says_which_credentials_it_wants() {
    let bucket = checkpoint().await;
    let cache = tempfile::tempdir().unwrap();
    let fetcher = fetcher_with("AKIAOTHER", &bucket, cache.path());
    let error = fetcher
        .resolve(&source("s3://models/demo"), &|_| ())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("s3://models/demo"), "{error}");
    assert!(error.to_string().contains("AWS_ACCESS_KEY_ID"), "{error}");
}

#[tokio::test]
async fn an_empty_folder_and_a_file_that_changes_meanwhile_are_told() {
    let bucket = checkpoint().await;
    let cache = tempfile::tempdir().unwrap();
    let fetcher = fetcher(cache.path(), bucket.settings());
    let error = fetcher
        .resolve(&source("s3://models/nowhere"), &|_| ())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("no file"), "{error}");
    bucket.change_after_listing();
    let error = fetcher
        .resolve(&source("s3://models/demo"), &|_| ())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("changed"), "{error}");
}
