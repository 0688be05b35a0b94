//! Fetching images from elsewhere: off unless hosts are allowed by name. One
//! URL parser decides and dials; a name is resolved once, every address of it
//! must be public, and exactly what was checked is dialled. Redirects are
//! followed a few times, each checked as if it were the first.
//!
//! The cases come from the advisories on vLLM's media connector
//! (CVE-2025-6242, CVE-2026-24779).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{CONTENT_TYPE, LOCATION};
use reqwest::{Client, Url};

const REDIRECTS: usize = 3;
const TIMEOUT: Duration = Duration::from_secs(10);

/// Fetches images from allowed hosts.
#[derive(Clone, Debug)]
pub(super) struct RemoteImages {
    hosts: Vec<String>,
    max_bytes: usize,
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
}

impl RemoteError {
    /// The error code of the API.
    #[must_use]
    pub(super) fn code(self) -> &'static str {
        match self {
            Self::Forbidden => "image_url_forbidden",
            Self::Failed => "image_fetch_failed",
            Self::TooLarge => "image_too_large",
        }
    }
}

impl RemoteImages {
    /// Allows exactly these hosts; `None` when there are none.
    #[must_use]
    pub(super) fn new(hosts: &[String], max_bytes: usize) -> Option<Self> {
        let hosts: Vec<String> = hosts.iter().map(|host| host.to_ascii_lowercase()).collect();
        (!hosts.is_empty()).then_some(Self { hosts, max_bytes })
    }

    /// The bytes of the image at `url`.
    ///
    /// # Errors
    /// See [`RemoteError`].
    pub(super) async fn fetch(&self, url: &str) -> Result<Bytes, RemoteError> {
        tokio::time::timeout(TIMEOUT, self.follow(url))
            .await
            .unwrap_or(Err(RemoteError::Failed))
    }

    async fn follow(&self, url: &str) -> Result<Bytes, RemoteError> {
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
            return self.take(response).await;
        }
        Err(RemoteError::Failed)
    }

    /// Parses once; whatever is dialled comes out of this value.
    fn check(&self, url: &str) -> Result<Url, RemoteError> {
        if url.contains('\\') || url.chars().any(char::is_control) {
            return Err(RemoteError::Forbidden);
        }
        let url = Url::parse(url).map_err(|_| RemoteError::Forbidden)?;
        let plain = url.scheme() == "https"
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
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, 443))
            .await
            .map_err(|_| RemoteError::Failed)?
            .collect();
        if addresses.is_empty() {
            return Err(RemoteError::Failed);
        }
        if !addresses.iter().all(|address| is_public(address.ip())) {
            return Err(RemoteError::Forbidden);
        }
        let client = Client::builder()
            .resolve_to_addrs(host, &addresses)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .https_only(true)
            .referer(false)
            .build()
            .map_err(|_| RemoteError::Failed)?;
        client
            .get(url.clone())
            .send()
            .await
            .map_err(|_| RemoteError::Failed)
    }

    async fn take(&self, mut response: reqwest::Response) -> Result<Bytes, RemoteError> {
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
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }
}

/// Whether an address is one of the open internet.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => match embedded(address) {
            Some(inner) => is_public_v4(inner),
            None => is_public_v6(address),
        },
    }
}

/// An IPv4 address in IPv6 clothes: mapped, NAT64 or 6to4.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, ..] = address.segments();
    let octets = address.octets();
    let at = |from: usize| {
        Ipv4Addr::new(
            octets[from],
            octets[from + 1],
            octets[from + 2],
            octets[from + 3],
        )
    };
    match (a, b) {
        (0x64, 0xff9b) => Some(at(12)),
        (0x2002, _) => Some(Ipv4Addr::new(
            (b >> 8) as u8,
            b as u8,
            (c >> 8) as u8,
            c as u8,
        )),
        _ => address.to_ipv4_mapped(),
    }
}

/// IANA's special-purpose registry for IPv4, and multicast.
fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(address.is_unspecified()
        || address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_broadcast()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (b == 18 || b == 19))
        || a >= 240)
}

/// Only what IANA hands out for global unicast (2000::/3), without its special parts.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let [a, b, ..] = address.segments();
    (a & 0xe000) == 0x2000
        && !(a == 0x2001 && b < 0x0200)
        && !(a == 0x2001 && b == 0x0db8)
        && !(a == 0x3fff && b < 0x1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images() -> RemoteImages {
        RemoteImages::new(&["images.example.com".to_owned()], 1000).unwrap()
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

    #[test]
    fn addresses_that_are_not_of_the_open_internet_are_refused() {
        for address in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "127.1.2.3",
            "169.254.169.254",
            "172.16.0.1",
            "192.0.0.8",
            "192.168.1.1",
            "198.18.0.1",
            "203.0.113.9",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "::7f00:1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "2001:db8::1",
            "2001::1",
            "3fff::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
        for address in [
            "1.1.1.1",
            "93.184.216.34",
            "2606:4700::1111",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
        ] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[tokio::test]
    async fn a_listed_name_with_a_private_address_is_not_dialled() {
        let local = RemoteImages::new(&["localhost".to_owned()], 1000).unwrap();
        assert_eq!(
            local.fetch("https://localhost/x.png").await,
            Err(RemoteError::Forbidden)
        );
        assert!(RemoteImages::new(&[], 1000).is_none());
    }
}
