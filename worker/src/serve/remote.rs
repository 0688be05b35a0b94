//! Fetching images from elsewhere: off unless hosts are allowed by name. One
//! URL parser decides and dials; a name is resolved once, every address of it
//! must be public, and exactly what was checked is dialled. Redirects are
//! followed a few times, each checked as if it were the first.
//!
//! The cases come from the advisories on vLLM's media connector
//! (CVE-2025-6242, CVE-2026-24779).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{CONTENT_TYPE, LOCATION};
use reqwest::{Client, Url};

use super::addresses::is_public;
use super::buffers::Share;

const REDIRECTS: usize = 3;
const TIMEOUT: Duration = Duration::from_secs(10);

/// Fetches images from allowed hosts.
#[derive(Clone, Debug)]
pub(super) struct RemoteImages {
    hosts: Vec<String>,
    max_bytes: usize,
    network: Network,
}

/// What is beyond the rules of this file. Tests have no internet and bring a
/// server of their own; nothing else makes another one than [`Network::internet`].
#[derive(Clone, Debug)]
struct Network {
    scheme: &'static str,
    names: Names,
    /// Whether an address may be dialled.
    reachable: fn(IpAddr) -> bool,
    /// For one image, redirects included.
    timeout: Duration,
}

#[derive(Clone, Debug)]
enum Names {
    System,
    #[cfg(test)]
    Fixed(Vec<(&'static str, SocketAddr)>),
}

impl Network {
    fn internet() -> Self {
        Self {
            scheme: "https",
            names: Names::System,
            reachable: is_public,
            timeout: TIMEOUT,
        }
    }

    async fn resolve(&self, host: &str) -> io::Result<Vec<SocketAddr>> {
        match &self.names {
            Names::System => Ok(tokio::net::lookup_host((host, 443)).await?.collect()),
            #[cfg(test)]
            Names::Fixed(names) => Ok(names
                .iter()
                .filter(|(name, _)| *name == host)
                .map(|(_, address)| *address)
                .collect()),
        }
    }
}

/// Why a remote image is not fetched. The texts do not tell what was found at
/// an address, so that nobody can look around through this server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RemoteError {
    /// The URL, its host or an address behind it is not allowed.
    #[error("this image URL is not allowed: only https with a host that the server lists")]
    Forbidden,
    /// The host did not give an image in time.
    #[error("the image could not be fetched")]
    Failed,
    /// The image is larger than allowed.
    #[error("the remote image is too large")]
    TooLarge,
    /// There is no memory for it now.
    #[error("this server holds as many request bytes as it may")]
    Full,
}

impl RemoteError {
    /// The error code of the API; `None` where the request is not at fault.
    #[must_use]
    pub(super) fn code(self) -> Option<&'static str> {
        match self {
            Self::Forbidden => Some("image_url_forbidden"),
            Self::Failed => Some("image_fetch_failed"),
            Self::TooLarge => Some("image_file_too_large"),
            Self::Full => None,
        }
    }
}

impl RemoteImages {
    /// Allows exactly these hosts; `None` when there are none.
    #[must_use]
    pub(super) fn new(hosts: &[String], max_bytes: usize) -> Option<Self> {
        let hosts: Vec<String> = hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        (!hosts.is_empty()).then_some(Self {
            hosts,
            max_bytes,
            network: Network::internet(),
        })
    }

    /// The bytes of the image at `url`, counted in `share`.
    ///
    /// # Errors
    /// See [`RemoteError`].
    pub(super) async fn fetch(&self, url: &str, share: &mut Share) -> Result<Bytes, RemoteError> {
        tokio::time::timeout(self.network.timeout, self.follow(url, share))
            .await
            .unwrap_or(Err(RemoteError::Failed))
    }

    async fn follow(&self, url: &str, share: &mut Share) -> Result<Bytes, RemoteError> {
        let mut url = self.check(url)?;
        for _ in 0..=REDIRECTS {
            let response = self.get(&url).await?;
            if response.status().is_redirection() {
                let to = response
                    .headers()
                    .get(LOCATION)
                    .and_then(|to| to.to_str().ok())
                    .ok_or(RemoteError::Failed)?;
                let to = url.join(to).map_err(|_| RemoteError::Forbidden)?;
                url = self.check(to.as_str())?;
                continue;
            }
            return self.take(response, share).await;
        }
        Err(RemoteError::Failed)
    }

    /// Parses once; whatever is dialled comes out of this value.
    fn check(&self, url: &str) -> Result<Url, RemoteError> {
        if url.contains('\\') || url.chars().any(char::is_control) {
            return Err(RemoteError::Forbidden);
        }
        let url = Url::parse(url).map_err(|_| RemoteError::Forbidden)?;
        let plain = url.scheme() == self.network.scheme
            && url.username().is_empty()
            && url.password().is_none()
            && url.port().is_none();
        let listed = url
            .domain()
            .is_some_and(|host| self.hosts.iter().any(|listed| listed == host));
        if plain && listed {
            Ok(url)
        } else {
            Err(RemoteError::Forbidden)
        }
    }

    async fn get(&self, url: &Url) -> Result<reqwest::Response, RemoteError> {
        let host = url.domain().ok_or(RemoteError::Forbidden)?;
        let addresses = self.network.resolve(host).await;
        let addresses = addresses.map_err(|_| RemoteError::Failed)?;
        if addresses.is_empty() {
            return Err(RemoteError::Failed);
        }
        let reachable = self.network.reachable;
        if !addresses.iter().all(|address| reachable(address.ip())) {
            return Err(RemoteError::Forbidden);
        }
        let client = Client::builder()
            .resolve_to_addrs(host, &addresses)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .https_only(self.network.scheme == "https")
            .referer(false)
            .build()
            .map_err(|_| RemoteError::Failed)?;
        client
            .get(url.clone())
            .send()
            .await
            .map_err(|_| RemoteError::Failed)
    }

    async fn take(
        &self,
        mut response: reqwest::Response,
        share: &mut Share,
    ) -> Result<Bytes, RemoteError> {
        let image = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|kind| kind.to_str().ok())
            .is_some_and(|kind| kind.starts_with("image/"));
        if !response.status().is_success() || !image {
            return Err(RemoteError::Failed);
        }
        let mut bytes = BytesMut::new();
        while let Some(chunk) = response.chunk().await.map_err(|_| RemoteError::Failed)? {
            if bytes.len() + chunk.len() > self.max_bytes {
                return Err(RemoteError::TooLarge);
            }
            share.grow(chunk.len()).map_err(|_| RemoteError::Full)?;
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::http::StatusCode;
    use axum::routing::get;
    use futures::StreamExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::serve::buffers::Buffers;

    fn images() -> RemoteImages {
        RemoteImages::new(&["images.example.com".to_owned()], 1000).unwrap()
    }

    fn share() -> Share {
        Buffers::new(2000).share()
    }

    #[test]
    fn only_listed_hosts_over_https_are_allowed() {
        assert!(
            images()
                .check("https://images.example.com/a.png?x#y")
                .is_ok()
        );
        assert!(images().check("https://IMAGES.example.com/a.png").is_ok());
        for url in [
            "http://images.example.com/a.png",
            "https://images.example.com:8443/a.png",
            "https://user@images.example.com/",
            "https://user:pw@images.example.com/",
            "https://images.example.com@evil.test/",
            "https://evil.test\\@images.example.com/",
            "https://images.example.com.evil.test/",
            "https://images.example.com./",
            "https://evil.test/#@images.example.com",
            "https://127.0.0.1/",
            "https://0x7f.1/",
            "https://2130706433/",
            "https://[::1]/",
            "https://[::ffff:127.0.0.1]/",
            "https://169.254.169.254/latest/meta-data",
            "https://xn--images-.example.com/",
            "file:///etc/passwd",
            "ftp://images.example.com/",
            "//images.example.com/",
            "data:image/png;base64,aGk=",
            "https://images.example.com\n.evil.test/",
            "",
        ] {
            assert_eq!(images().check(url), Err(RemoteError::Forbidden), "{url}");
        }
    }

    #[tokio::test]
    async fn a_listed_name_with_a_private_address_is_not_dialled() {
        let local = RemoteImages::new(&["localhost".to_owned()], 1000).unwrap();
        assert_eq!(
            local.fetch("https://localhost/x.png", &mut share()).await,
            Err(RemoteError::Forbidden)
        );
        assert!(RemoteImages::new(&[], 1000).is_none());
    }

    /// A server on loopback that stands for the hosts `images.example.com` and
    /// `other.example.com`; `inner.example.com` leads to a private address.
    async fn served() -> RemoteImages {
        let redirect = |to: &'static str| async move { (StatusCode::FOUND, [(LOCATION, to)]) };
        let typed =
            |kind: &'static str, bytes: Vec<u8>| async move { ([(CONTENT_TYPE, kind)], bytes) };
        let routes = Router::new()
            .route(
                "/image",
                get(move || typed("image/png", b"pixels".to_vec())),
            )
            .route("/most", get(move || typed("image/png", vec![0; 1000])))
            .route("/more", get(move || typed("image/png", vec![0; 1001])))
            .route("/page", get(move || typed("text/html", b"<html>".to_vec())))
            .route("/silent", get(std::future::pending::<()>))
            .route(
                "/endless",
                get(async || {
                    let drops = futures::stream::repeat_with(|| Ok::<_, io::Error>(vec![0; 10]));
                    let slow = drops.then(async |drop| {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        drop
                    });
                    ([(CONTENT_TYPE, "image/png")], Body::from_stream(slow))
                }),
            )
            .route(
                "/moved",
                get(move || redirect("http://other.example.com/image")),
            )
            .route("/near", get(move || redirect("/moved")))
            .route("/round", get(move || redirect("/round")))
            .route("/out", get(move || redirect("http://evil.test/image")))
            .route(
                "/in",
                get(move || redirect("http://inner.example.com/image")),
            )
            .route(
                "/metadata",
                get(move || redirect("http://169.254.169.254/image")),
            )
            .route("/file", get(move || redirect("file:///etc/passwd")))
            .route(
                "/secure",
                get(move || redirect("https://other.example.com/image")),
            );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, routes).await });
        let hosts = ["images", "other", "inner"].map(|name| format!("{name}.example.com"));
        let inner = SocketAddr::from(([10, 0, 0, 1], here.port()));
        RemoteImages {
            network: Network {
                scheme: "http",
                names: Names::Fixed(vec![
                    ("images.example.com", here),
                    ("other.example.com", here),
                    ("inner.example.com", inner),
                ]),
                reachable: |address| address.is_loopback() || is_public(address),
                timeout: Duration::from_millis(500),
            },
            ..RemoteImages::new(&hosts, 1000).unwrap()
        }
    }

    #[tokio::test]
    async fn what_a_listed_host_gives_is_taken_within_bounds_of_kind_size_and_time() {
        shell::tls::install_provider();
        let images = served().await;
        let get = async |path: &str| {
            images
                .fetch(&format!("http://images.example.com/{path}"), &mut share())
                .await
        };
        assert_eq!(get("image").await.unwrap(), "pixels");
        assert_eq!(get("most").await.unwrap().len(), 1000);
        assert_eq!(get("more").await, Err(RemoteError::TooLarge));
        assert_eq!(get("page").await, Err(RemoteError::Failed), "no image");
        assert_eq!(get("none").await, Err(RemoteError::Failed), "404");
        assert_eq!(
            get("silent").await,
            Err(RemoteError::Failed),
            "no answer in time"
        );
        assert_eq!(
            get("endless").await,
            Err(RemoteError::Failed),
            "no end in time"
        );
    }

    #[tokio::test]
    async fn what_is_fetched_counts_in_the_memory_of_all_requests() {
        shell::tls::install_provider();
        let images = served().await;
        let buffers = Buffers::new(1005);
        let (mut first, mut second) = (buffers.share(), buffers.share());
        let small = "http://images.example.com/image";
        let large = "http://images.example.com/most";
        assert_eq!(images.fetch(small, &mut first).await.unwrap(), "pixels");
        assert_eq!(
            images.fetch(large, &mut second).await,
            Err(RemoteError::Full)
        );
        drop((first, second));
        let fetched = images.fetch(large, &mut buffers.share()).await;
        assert_eq!(fetched.unwrap().len(), 1000);
    }

    #[tokio::test]
    async fn redirects_are_followed_a_few_times_and_each_is_checked_as_the_first() {
        shell::tls::install_provider();
        let images = served().await;
        let get = async |path: &str| {
            images
                .fetch(&format!("http://images.example.com/{path}"), &mut share())
                .await
        };
        assert_eq!(get("moved").await.unwrap(), "pixels");
        assert_eq!(get("near").await.unwrap(), "pixels");
        assert_eq!(get("round").await, Err(RemoteError::Failed));
        for path in ["out", "in", "metadata", "file", "secure"] {
            assert_eq!(get(path).await, Err(RemoteError::Forbidden), "{path}");
        }
    }
}
