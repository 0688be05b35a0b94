//! Chat answers as OpenAI's SDKs read them: the first chunk of each has the
//! role, the last an empty delta and the reason for the end.

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use protocol::openai::{
    ChatChoice, ChatChunk, ChatCompletion, ChatLogprobs, ChunkChoice, Delta, FinishReason,
    ReplyMessage, TokenLogprob, TopLogprob, Usage,
};
use protocol::sse;

use crate::engine::TokenEvent;
use crate::serve::reply::{Form, Head};
use crate::serve::texts::{Texts, written};

/// Chat answers as they grow.
pub(super) struct ChatForm {
    head: Head,
    texts: Arc<dyn Texts>,
    logprobs: bool,
    choices: Vec<Growing>,
}

/// What has come of an answer and was not sent yet.
#[derive(Default)]
struct Growing {
    text: String,
    logprobs: Vec<TokenLogprob>,
    reason: Option<FinishReason>,
}

impl ChatForm {
    /// Nothing yet. `logprobs`: whether probabilities were asked for.
    #[must_use]
    pub(super) fn new(head: Head, texts: Arc<dyn Texts>, logprobs: bool) -> Self {
        let choices = (0..head.answers).map(|_| Growing::default()).collect();
        Self {
            head,
            texts,
            logprobs,
            choices,
        }
    }

    fn chunk(
        &self,
        index: usize,
        delta: Delta,
        logprobs: Option<ChatLogprobs>,
        finish_reason: Option<FinishReason>,
    ) -> Bytes {
        let choice = ChunkChoice {
            index: index as u32,
            delta,
            logprobs,
            finish_reason,
        };
        self.event(vec![choice], None)
    }

    fn event(&self, choices: Vec<ChunkChoice>, usage: Option<Usage>) -> Bytes {
        let chunk = ChatChunk {
            id: self.head.id.clone(),
            object: "chat.completion.chunk".to_owned(),
            created: self.head.created,
            model: self.head.model.clone(),
            choices,
            usage: self.head.usage.then_some(usage),
        };
        sse::event(&serde_json::to_string(&chunk).unwrap_or_default())
    }

    /// A chunk with everything that was not sent yet.
    fn pending(&mut self, index: usize) -> Bytes {
        let growing = &mut self.choices[index];
        let delta = Delta {
            role: None,
            content: Some(std::mem::take(&mut growing.text)),
        };
        let content = std::mem::take(&mut growing.logprobs);
        let logprobs = self.logprobs.then_some(ChatLogprobs { content });
        self.chunk(index, delta, logprobs, None)
    }
}

impl Form for ChatForm {
    fn head(&self) -> &Head {
        &self.head
    }

    fn opening(&mut self) -> Vec<Bytes> {
        let role = Delta {
            role: Some("assistant".to_owned()),
            content: Some(String::new()),
        };
        (0..self.head.answers)
            .map(|index| self.chunk(index, role.clone(), None, None))
            .collect()
    }

    fn add(&mut self, index: usize, token: &TokenEvent) {
        let growing = &mut self.choices[index];
        growing.text += &token.text;
        if self.logprobs {
            growing
                .logprobs
                .push(token_logprob(self.texts.as_ref(), token));
        }
    }

    fn piece(&mut self, index: usize) -> Option<Bytes> {
        (!self.choices[index].text.is_empty()).then(|| self.pending(index))
    }

    fn end(&mut self, index: usize, rest: &str, reason: FinishReason) {
        let growing = &mut self.choices[index];
        growing.text += rest;
        growing.reason = Some(reason);
    }

    fn last_pieces(&mut self, index: usize) -> Vec<Bytes> {
        let growing = &self.choices[index];
        let reason = growing.reason;
        let rest = !growing.text.is_empty() || !growing.logprobs.is_empty();
        let rest = rest.then(|| self.pending(index));
        let end = self.chunk(index, Delta::default(), None, reason);
        rest.into_iter().chain([end]).collect()
    }

    fn usage(&self, usage: Usage) -> Bytes {
        self.event(Vec::new(), Some(usage))
    }

    fn whole(self, usage: Usage) -> Response {
        let choices = self.choices.into_iter().enumerate();
        let choices = choices.map(|(index, growing)| ChatChoice {
            index: index as u32,
            message: ReplyMessage {
                role: "assistant".to_owned(),
                content: growing.text,
                refusal: None,
            },
            logprobs: self.logprobs.then_some(ChatLogprobs {
                content: growing.logprobs,
            }),
            finish_reason: growing.reason,
        });
        Json(ChatCompletion {
            choices: choices.collect(),
            usage,
            id: self.head.id,
            object: "chat.completion".to_owned(),
            created: self.head.created,
            model: self.head.model,
        })
        .into_response()
    }
}

fn token_logprob(texts: &dyn Texts, token: &TokenEvent) -> TokenLogprob {
    let top = token.top.iter().map(|candidate| {
        let bytes = texts.token(candidate.token);
        TopLogprob {
            token: written(&bytes),
            bytes,
            logprob: candidate.logprob,
        }
    });
    let bytes = texts.token(token.token);
    TokenLogprob {
        token: written(&bytes),
        bytes,
        logprob: token.logprob.unwrap_or_default(),
        top_logprobs: top.collect(),
    }
}
