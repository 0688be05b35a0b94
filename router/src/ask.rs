//! `llava-router ask`: a client of the router's own API. `helm test` runs it,
//! since images without a shell hold no curl.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use clap::Args;
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use protocol::sse;
use serde_json::{Value, json};

/// How long an answer may take, a model's waking included.
const TIMEOUT: Duration = Duration::from_secs(600);

/// What to ask, about which images, and whom.
#[derive(Args, Clone, Debug)]
pub struct AskArgs {
    /// Where the router is
    #[arg(long, default_value = "http://localhost:8000", value_name = "URL")]
    pub url: Uri,

    /// The model; the first that the router lists when absent
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,

    /// A PNG, JPEG, WebP or GIF file to ask about; repeat for several
    #[arg(long, value_name = "FILE")]
    pub image: Vec<PathBuf>,

    /// Tokens of the answer, at most
    #[arg(long, default_value_t = 128, value_name = "N")]
    pub max_tokens: u32,

    /// A key, where the router asks for one
    #[arg(
        long,
        env = "LLAVA_API_KEY",
        hide_env_values = true,
        value_name = "KEY"
    )]
    pub api_key: Option<String>,

    /// The question
    pub question: String,
}

/// A question without an answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// An image cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file is no image that models take.
    #[error("{0} is no PNG, JPEG, WebP or GIF file")]
    NoImage(PathBuf),
    /// The router cannot be reached.
    #[error("cannot reach {url}")]
    Reach {
        /// Where it should be.
        url: String,
        /// Why not.
        source: Box<hyper_util::client::legacy::Error>,
    },
    /// The address and a path do not make an address.
    #[error("cannot ask {url}")]
    Address {
        /// Where the router should be.
        url: String,
        /// Why not.
        source: http::Error,
    },
    /// The answer broke off.
    #[error("the answer broke off")]
    Broken(#[source] hyper::Error),
    /// The answer is no JSON, or lacks what it must hold.
    #[error("the router's answer cannot be understood: {0}")]
    Garbled(String),
    /// The router refused.
    #[error("the router answered {status}: {message}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
        /// The error's own message.
        message: String,
    },
    /// The stream ended with an error event.
    #[error("the answer ended with an error: {0}")]
    Failed(String),
    /// The stream ended without its last event.
    #[error("the answer ended early, without [DONE]")]
    Cut,
    /// The stream held no text.
    #[error("the answer is empty")]
    Empty,
    /// Nothing is served.
    #[error(
        "no model is served: apply a LlavaDeployment first, such as examples/llava-deployment.yaml"
    )]
    NothingServed,
    /// The answer cannot be shown.
    #[error("cannot write the answer")]
    Write(#[source] std::io::Error),
    /// It took too long.
    #[error("no whole answer within {} s", TIMEOUT.as_secs())]
    Timeout,
}

impl AskArgs {
    /// Asks, and writes the answer as it comes.
    ///
    /// # Errors
    /// When there is no whole answer with text in it.
    pub async fn run(&self, out: &mut impl Write) -> Result<(), AskError> {
        tokio::time::timeout(TIMEOUT, self.ask(out))
            .await
            .map_err(|_| AskError::Timeout)?
    }

    async fn ask(&self, out: &mut impl Write) -> Result<(), AskError> {
        let mut content = self.image.iter().map(part).collect::<Result<Vec<_>, _>>()?;
        content.push(json!({"type": "text", "text": self.question}));
        let model = match &self.model {
            Some(model) => model.clone(),
            None => self.first_model().await?,
        };
        let body = json!({
            "model": model,
            "stream": true,
            "max_tokens": self.max_tokens,
            "messages": [{"role": "user", "content": content}],
        });
        let answer = self
            .call(Method::POST, "/v1/chat/completions", body.to_string())
            .await?;
        relay(answer, out).await
    }

    async fn first_model(&self) -> Result<String, AskError> {
        let answer = self.call(Method::GET, "/v1/models", String::new()).await?;
        let list = parse(&collect(answer).await?)?;
        let models = list["data"].as_array();
        let models = models.ok_or_else(|| AskError::Garbled(list.to_string()))?;
        let model = models.first().ok_or(AskError::NothingServed)?;
        let id = model["id"].as_str();
        Ok(id
            .ok_or_else(|| AskError::Garbled(list.to_string()))?
            .to_owned())
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        body: String,
    ) -> Result<Response<Incoming>, AskError> {
        let base = self.url.to_string();
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", base.trim_end_matches('/')))
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(key) = &self.api_key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|source| AskError::Address {
                url: self.url.to_string(),
                source,
            })?;
        let client = Client::builder(TokioExecutor::new()).build_http();
        let answer = client
            .request(request)
            .await
            .map_err(|source| AskError::Reach {
                url: self.url.to_string(),
                source: Box::new(source),
            })?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let body = collect(answer).await?;
        let message = parse(&body).ok().and_then(|body| message(&body));
        Err(AskError::Refused {
            status,
            message: message.unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned()),
        })
    }
}

/// Writes the text of each event; only a stream that ends as it should is an answer.
async fn relay(answer: Response<Incoming>, out: &mut impl Write) -> Result<(), AskError> {
    let mut body = answer.into_body();
    let mut decoder = sse::Decoder::default();
    let mut said = false;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(AskError::Broken)?;
        for event in frame
            .data_ref()
            .map(|data| decoder.push(data))
            .unwrap_or_default()
        {
            if event == sse::DONE {
                writeln!(out).map_err(AskError::Write)?;
                return if said { Ok(()) } else { Err(AskError::Empty) };
            }
            let event = parse(event.as_bytes())?;
            if let Some(message) = message(&event) {
                return Err(AskError::Failed(message));
            }
            if let Some(text) = event["choices"][0]["delta"]["content"].as_str() {
                said |= !text.trim().is_empty();
                write!(out, "{text}")
                    .and_then(|()| out.flush())
                    .map_err(AskError::Write)?;
            }
        }
    }
    Err(AskError::Cut)
}

/// An image as a part of a message.
fn part(path: &PathBuf) -> Result<Value, AskError> {
    let bytes = std::fs::read(path).map_err(|source| AskError::Read {
        path: path.clone(),
        source,
    })?;
    let kind = match bytes.as_slice() {
        [0x89, b'P', b'N', b'G', ..] => "png",
        [0xff, 0xd8, 0xff, ..] => "jpeg",
        [
            b'R',
            b'I',
            b'F',
            b'F',
            _,
            _,
            _,
            _,
            b'W',
            b'E',
            b'B',
            b'P',
            ..,
        ] => "webp",
        [b'G', b'I', b'F', b'8', ..] => "gif",
        _ => return Err(AskError::NoImage(path.clone())),
    };
    let url = format!("data:image/{kind};base64,{}", BASE64_STANDARD.encode(bytes));
    Ok(json!({"type": "image_url", "image_url": {"url": url}}))
}

fn message(body: &Value) -> Option<String> {
    Some(
        body.get("error")?["message"]
            .as_str()
            .unwrap_or("no message")
            .to_owned(),
    )
}

fn parse(bytes: &[u8]) -> Result<Value, AskError> {
    serde_json::from_slice(bytes)
        .map_err(|_| AskError::Garbled(String::from_utf8_lossy(bytes).into_owned()))
}

async fn collect(answer: Response<Incoming>) -> Result<Bytes, AskError> {
    let body = answer.into_body().collect().await;
    Ok(body.map_err(AskError::Broken)?.to_bytes())
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::{get, post};

    use super::*;

    /// A router that serves `models` and gives `answer` to every question.
    async fn server(models: &'static str, status: StatusCode, answer: &'static str) -> Uri {
        let app = Router::new()
            .route("/v1/models", get(async move || models))
            .route("/v1/chat/completions", post(async move || (status, answer)));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        url.parse().unwrap()
    }

    async fn ask(url: Uri) -> (Result<(), AskError>, String) {
        let args = AskArgs {
            url,
            model: None,
            image: Vec::new(),
            max_tokens: 8,
            api_key: None,
            question: "What?".into(),
        };
        let mut out = Vec::new();
        let result = args.run(&mut out).await;
        (result, String::from_utf8(out).unwrap())
    }

    const ONE: &str = r#"{"data":[{"id":"m"}]}"#;

    #[tokio::test]
    async fn the_text_of_a_whole_answer_is_written() {
        let answer = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\"}}]}\n\n: keep-alive\n\n\
            data: {\"choices\":[{\"delta\":{\"content\":\"a \"}}]}\n\n\
            data: {\"choices\":[{\"delta\":{\"content\":\"star\"}}]}\n\ndata: {\"choices\":[]}\n\ndata: [DONE]\n\n";
        let (result, out) = ask(server(ONE, StatusCode::OK, answer).await).await;
        result.unwrap();
        assert_eq!(out, "a star\n");
    }

    #[tokio::test]
    async fn what_is_no_whole_answer_is_an_error_that_says_why() {
        for (models, status, answer, why) in [
            (
                r#"{"data":[]}"#,
                StatusCode::OK,
                "",
                "no model is served: apply a LlavaDeployment",
            ),
            (
                ONE,
                StatusCode::SERVICE_UNAVAILABLE,
                r#"{"error":{"message":"no worker"}}"#,
                "the router answered 503 Service Unavailable: no worker",
            ),
            (
                ONE,
                StatusCode::OK,
                "data: {\"error\":{\"message\":\"the worker was lost\"}}\n\n",
                "the answer ended with an error: the worker was lost",
            ),
            (
                ONE,
                StatusCode::OK,
                "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n",
                "the answer ended early",
            ),
            (
                ONE,
                StatusCode::OK,
                "data: [DONE]\n\n",
                "the answer is empty",
            ),
        ] {
            let (result, _) = ask(server(models, status, answer).await).await;
            let error = result.unwrap_err().to_string();
            assert!(error.starts_with(why), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_no_image_is_not_sent() {
        let path = PathBuf::from(file!());
        let path = if path.exists() {
            path
        } else {
            "src/ask.rs".into()
        };
        assert!(matches!(part(&path), Err(AskError::NoImage(_))));
    }
}
