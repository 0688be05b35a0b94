//! A client of the OpenAI-style API that remembers what it saw: the text, how
//! the stream ended, and every error, so that a promise can be judged on it.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::StreamExt as _;
use protocol::sse;
use serde_json::{Value, json};

/// `</s>` in every LLaMA vocabulary.
const END_TOKEN: &str = "2";

/// Asks one router, or one worker.
#[derive(Clone, Debug)]
pub struct Asker {
    http: reqwest::Client,
    base: String,
}

/// What is asked; see [`about`](Question::about).
#[derive(Clone, Debug)]
pub struct Question {
    model: String,
    text: String,
    image: Option<Vec<u8>>,
    max_tokens: u32,
    endless: bool,
}

/// What came back.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// All text of the answer.
    pub text: String,
    /// `stop` or `length`, when the answer came to its end.
    pub finish: Option<String>,
    /// The bodies of error events, or of a refusal.
    pub errors: Vec<Value>,
    /// Whether a stream ended with `[DONE]`.
    pub done: bool,
    /// Events with text.
    pub deltas: usize,
    /// The worker that answered, by the router's word.
    pub worker: Option<String>,
}

impl Question {
    /// A question about an image file of any kind that LLaVA reads.
    #[must_use]
    pub fn about(image: Vec<u8>, text: &str) -> Self {
        Self {
            model: "llava-shapes".into(),
            text: text.into(),
            image: Some(image),
            max_tokens: 48,
            endless: false,
        }
    }

    /// Of another model.
    #[must_use]
    pub fn model(mut self, name: &str) -> Self {
        self.model = name.into();
        self
    }

    /// An answer of at most this many tokens.
    #[must_use]
    pub fn max_tokens(mut self, tokens: u32) -> Self {
        self.max_tokens = tokens;
        self
    }

    /// An answer that never stops by itself: the end token is forbidden.
    #[must_use]
    pub fn endless(mut self) -> Self {
        self.endless = true;
        // Nearly the whole context of llava-shapes, and room for an image and a question.
        self.max_tokens = 900;
        self
    }

    fn body(&self, stream: bool) -> Value {
        let text = json!({"type": "text", "text": self.text});
        let image = self.image.as_ref().map(|bytes| {
            let url = format!("data:image/png;base64,{}", STANDARD.encode(bytes));
            json!({"type": "image_url", "image_url": {"url": url}})
        });
        let content: Vec<Value> = image.into_iter().chain([text]).collect();
        let mut body = json!({
            "model": self.model, "stream": stream, "temperature": 0, "max_tokens": self.max_tokens,
            "messages": [{"role": "user", "content": content}],
        });
        if self.endless {
            body["logit_bias"] = json!({END_TOKEN: -100});
        }
        body
    }
}

impl Answer {
    /// Whether the answer is whole: 200, no error, and a reason why it ended.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.status == 200 && self.errors.is_empty() && self.finish.is_some()
    }
}

impl Asker {
    /// Asks the API at this base URL, such as `http://198.18.0.9`.
    ///
    /// # Errors
    /// When the HTTP client cannot be made.
    pub fn new(base: impl Into<String>) -> reqwest::Result<Self> {
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .timeout(Duration::from_secs(300))
            .build()?;
        Ok(Self {
            http,
            base: base.into(),
        })
    }

    /// The models that can be asked, by `GET /v1/models`.
    ///
    /// # Errors
    /// When no answer comes, or one that is no list.
    pub async fn models(&self) -> reqwest::Result<Vec<String>> {
        let url = format!("{}/v1/models", self.base);
        let list: Value = self
            .http
            .get(url)
            .send()
            .await?
            .error_for_status()?
            .json()
            .await?;
        let entries = list["data"].as_array().cloned().unwrap_or_default();
        Ok(entries
            .iter()
            .filter_map(|model| model["id"].as_str().map(str::to_owned))
            .collect())
    }

    /// Asks and takes the answer in one piece.
    ///
    /// # Errors
    /// When the connection fails; a refusal is an answer.
    pub async fn whole(&self, question: &Question) -> reqwest::Result<Answer> {
        let response = self.post(question, false).await?;
        let mut answer = Answer::of(&response);
        let body: Value = response.json().await?;
        if answer.status == 200 {
            let choice = &body["choices"][0];
            answer.text = choice["message"]["content"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            answer.finish = choice["finish_reason"].as_str().map(str::to_owned);
        } else {
            answer.errors.push(body["error"].clone());
        }
        Ok(answer)
    }

    /// Asks and reads the answer as a stream of events.
    ///
    /// # Errors
    /// When the connection fails or is cut without an error event.
    pub async fn stream(&self, question: &Question) -> reqwest::Result<Answer> {
        self.watch(question, |_| ()).await
    }

    /// As [`stream`](Self::stream), calling `seen` after every event.
    ///
    /// # Errors
    /// When the connection fails or is cut without an error event.
    pub async fn watch(
        &self,
        question: &Question,
        mut seen: impl FnMut(&Answer) + Send,
    ) -> reqwest::Result<Answer> {
        let response = self.post(question, true).await?;
        let mut answer = Answer::of(&response);
        if answer.status != 200 {
            let body: Value = response.json().await?;
            answer.errors.push(body["error"].clone());
            return Ok(answer);
        }
        let mut decoder = sse::Decoder::default();
        let mut bytes = response.bytes_stream();
        while let Some(chunk) = bytes.next().await {
            for event in decoder.push(&chunk?) {
                answer.take(&event);
                seen(&answer);
            }
        }
        Ok(answer)
    }

    async fn post(&self, question: &Question, stream: bool) -> reqwest::Result<reqwest::Response> {
        let url = format!("{}/v1/chat/completions", self.base);
        let body = question.body(stream).to_string();
        self.http
            .post(url)
            .header("content-type", "application/json")
            .body(body)
            .send()
            .await
    }
}

impl Answer {
    fn of(response: &reqwest::Response) -> Self {
        let worker = response.headers().get(protocol::header::WORKER);
        Self {
            status: response.status().as_u16(),
            worker: worker
                .and_then(|name| name.to_str().ok())
                .map(str::to_owned),
            ..Self::default()
        }
    }

    fn take(&mut self, event: &str) {
        if event == sse::DONE {
            self.done = true;
            return;
        }
        let value: Value = serde_json::from_str(event).unwrap_or_default();
        if value["error"].is_object() {
            self.errors.push(value["error"].clone());
            return;
        }
        let choice = &value["choices"][0];
        if let Some(text) = choice["delta"]["content"]
            .as_str()
            .filter(|text| !text.is_empty())
        {
            self.text.push_str(text);
            self.deltas += 1;
        }
        if let Some(reason) = choice["finish_reason"].as_str() {
            self.finish = Some(reason.to_owned());
        }
    }
}
