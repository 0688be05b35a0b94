//! A client that sees everything: status, headers, each chunk as it comes.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

/// One connection to a router. Dropping it closes the connection.
#[derive(Debug)]
pub(crate) struct Client {
    sender: SendRequest<Full<Bytes>>,
    _driver: AbortOnDropHandle<()>,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Whether the body ended as HTTP means it.
    pub(crate) whole: bool,
}

/// An answer that is coming.
#[derive(Debug)]
pub(crate) struct Coming {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    body: Incoming,
    _client: Client,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::try_connect(address).await.unwrap()
    }

    pub(crate) async fn try_connect(address: SocketAddr) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(std::io::Error::other)?;
        let driver = tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(Self {
            sender,
            _driver: AbortOnDropHandle::new(driver),
        })
    }

    pub(crate) async fn send(
        mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Coming, hyper::Error> {
        self.sender.ready().await?;
        let (head, body) = self.sender.send_request(request).await?.into_parts();
        Ok(Coming {
            status: head.status,
            headers: head.headers,
            body,
            _client: self,
        })
    }
}

impl Coming {
    /// The next bytes; `None` at the end, an error when the connection broke.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            match self.body.frame().await? {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        return Some(Ok(data));
                    }
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }

    pub(crate) async fn whole(mut self) -> Reply {
        let mut body = Vec::new();
        let mut whole = true;
        while let Some(piece) = self.next().await {
            match piece {
                Ok(piece) => body.extend_from_slice(&piece),
                Err(_) => {
                    whole = false;
                    break;
                }
            }
        }
        Reply {
            status: self.status,
            headers: self.headers.clone(),
            body: body.into(),
            whole,
        }
    }
}

impl Reply {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {:?}", self.body))
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap().to_owned()
    }

    /// The data of its events.
    pub(crate) fn events(&self) -> Vec<String> {
        let mut decoder = protocol::sse::Decoder::default();
        let events = decoder.push(&self.body);
        assert!(
            !decoder.is_mid_event(),
            "half an event at the end of {:?}",
            self.body
        );
        events
    }
}

pub(crate) fn request(method: &str, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "router.test")
        .header("content-type", "application/json")
        .body(Full::new(body.into()))
        .unwrap()
}

/// A chat request for model `m`, with `extra` fields for the fake worker.
pub(crate) fn chat(extra: &Value) -> Request<Full<Bytes>> {
    request("POST", "/v1/chat/completions", body(extra))
}

pub(crate) fn body(extra: &Value) -> String {
    let mut body = json!({"messages": [{"role": "user", "content": "hi"}], "model": "m"});
    body.as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    body.to_string()
}

/// Sends and reads the whole answer.
pub(crate) async fn ask(address: SocketAddr, request: Request<Full<Bytes>>) -> Reply {
    super::soon("an answer", async {
        let client = Client::connect(address).await;
        client.send(request).await.unwrap().whole().await
    })
    .await
}

/// Sends and returns when the head of the answer is there.
pub(crate) async fn begin(address: SocketAddr, request: Request<Full<Bytes>>) -> Coming {
    super::soon("the head of an answer", async {
        Client::connect(address).await.send(request).await.unwrap()
    })
    .await
}
