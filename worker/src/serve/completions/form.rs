//! Completions in the form of OpenAI's older API: text, and probabilities as
//! parallel lists.

use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use protocol::openai::{Completion, CompletionChoice, CompletionLogprobs, FinishReason, Usage};
use protocol::sse;

use crate::engine::TokenEvent;
use crate::serve::reply::{Form, Head};
use crate::serve::texts::Texts;

/// Completions as they grow.
pub(super) struct TextForm {
    head: Head,
    texts: Arc<dyn Texts>,
    logprobs: bool,
    choices: Vec<Growing>,
}

/// What has come of an answer and was not sent yet.
#[derive(Clone, Default)]
struct Growing {
    text: String,
    logprobs: CompletionLogprobs,
    /// Where the next token begins, in characters.
    offset: usize,
    reason: Option<FinishReason>,
}

impl TextForm {
    /// Nothing but `echo`, the prompt if it is to be repeated. `logprobs`:
    /// whether probabilities were asked for.
    #[must_use]
    pub(super) fn new(head: Head, texts: Arc<dyn Texts>, logprobs: bool, echo: String) -> Self {
        let begun = Growing {
            offset: echo.chars().count(),
            text: echo,
            ..Growing::default()
        };
        let choices = vec![begun; head.answers];
        Self {
            head,
            texts,
            logprobs,
            choices,
        }
    }

    /// Everything that was not sent yet.
    fn pending(&mut self, index: usize) -> CompletionChoice {
        let growing = &mut self.choices[index];
        let logprobs = std::mem::take(&mut growing.logprobs);
        CompletionChoice {
            text: std::mem::take(&mut growing.text),
            index: index as u32,
            logprobs: self.logprobs.then_some(logprobs),
            finish_reason: growing.reason,
        }
    }

    fn completion(&self, choices: Vec<CompletionChoice>, usage: Option<Usage>) -> Completion {
        Completion {
            id: self.head.id.clone(),
            object: "text_completion".to_owned(),
            created: self.head.created,
            model: self.head.model.clone(),
            choices,
            usage,
        }
    }

    fn event(&self, choices: Vec<CompletionChoice>, usage: Option<Usage>) -> Bytes {
        let completion = self.completion(choices, usage);
        sse::event(&serde_json::to_string(&completion).unwrap_or_default())
    }
}

impl Form for TextForm {
    fn head(&self) -> &Head {
        &self.head
    }

    fn opening(&mut self) -> Vec<Bytes> {
        (0..self.head.answers)
            .filter_map(|index| self.piece(index))
            .collect()
    }

    fn add(&mut self, index: usize, token: &TokenEvent) {
        let growing = &mut self.choices[index];
        if self.logprobs {
            let text = self.texts.token(token.token);
            let lists = &mut growing.logprobs;
            lists.text_offset.push(growing.offset);
            growing.offset += text.chars().count();
            lists.tokens.push(text);
            lists.token_logprobs.push(token.logprob.unwrap_or_default());
            let top = token.top.iter();
            let top = top.map(|other| (self.texts.token(other.token), other.logprob));
            lists.top_logprobs.push(top.collect());
        }
        growing.text += &token.text;
    }

    fn piece(&mut self, index: usize) -> Option<Bytes> {
        if self.choices[index].text.is_empty() {
            return None;
        }
        let choice = self.pending(index);
        Some(self.event(vec![choice], None))
    }

    fn end(&mut self, index: usize, rest: &str, reason: FinishReason) {
        let growing = &mut self.choices[index];
        growing.text += rest;
        growing.reason = Some(reason);
    }

    fn last_pieces(&mut self, index: usize) -> Vec<Bytes> {
        let choice = self.pending(index);
        vec![self.event(vec![choice], None)]
    }

    fn usage(&self, usage: Usage) -> Bytes {
        self.event(Vec::new(), Some(usage))
    }

    fn whole(mut self, usage: Usage) -> Response {
        let choices = (0..self.head.answers)
            .map(|index| self.pending(index))
            .collect();
        Json(self.completion(choices, Some(usage))).into_response()
    }
}
