//! Completions in the form of OpenAI's older API: text, and probabilities as
//! parallel lists.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use protocol::openai::{Completion, CompletionChoice, CompletionLogprobs, FinishReason, Usage};
use protocol::sse;

use super::offset::Offset;
use crate::engine::TokenEvent;
use crate::serve::reply::{Form, Head};
use crate::serve::texts::{Texts, written};

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
    offset: Offset,
    reason: Option<FinishReason>,
}

impl TextForm {
    /// Nothing but `echo`, the prompt if it is to be repeated. `logprobs`:
    /// whether probabilities were asked for.
    #[must_use]
    pub(super) fn new(head: Head, texts: Arc<dyn Texts>, logprobs: bool, echo: String) -> Self {
        let begun = Growing {
            offset: Offset::behind(echo.chars().count()),
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
            let bytes = self.texts.token(token.token);
            let decoder = self.texts.decoder();
            let offset = growing.offset.next(&decoder, token.token, &bytes);
            let lists = &mut growing.logprobs;
            lists.text_offset.push(offset);
            lists.tokens.push(written(&bytes));
            lists.token_logprobs.push(token.logprob.unwrap_or_default());
            let mut top = BTreeMap::new();
            for other in &token.top {
                // Of tokens that are written alike, the most probable comes first and stays.
                let text = written(&self.texts.token(other.token));
                top.entry(text).or_insert(other.logprob);
            }
            lists.top_logprobs.push(top);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::detokenizer::Detokenizer;
    use crate::sampling::Candidate;
    use crate::serve::texts::CheckpointTexts;

    #[test]
    fn tokens_begin_in_the_text_where_they_say_and_parts_of_characters_stay_apart() {
        let texts = Arc::new(CheckpointTexts::demo());
        let ids = texts.ids("The 漢 circle, é");
        let head = Head::new("cmpl", "demo".to_owned(), 1, false);
        let mut form = TextForm::new(head, texts.clone(), true, "echo é".to_owned());
        let mut detokenizer = Detokenizer::new(texts.decoder());
        let candidate = |token| Candidate {
            token,
            logprob: -1.0,
        };
        for &token in &ids {
            let event = TokenEvent {
                token,
                text: detokenizer.push(token),
                logprob: Some(-1.0),
                top: ids.iter().copied().map(candidate).collect(),
            };
            form.add(0, &event);
        }
        let choice = form.pending(0);
        assert_eq!(choice.text, "echo éThe 漢 circle, é");
        let logprobs = choice.logprobs.unwrap();
        // The answer's own first space is not in the text.
        let mut at = "echo é".len();
        let mut dropped = 1;
        for (&token, offset) in ids.iter().zip(&logprobs.text_offset) {
            let before = choice
                .text
                .char_indices()
                .take_while(|(place, _)| *place <= at);
            assert_eq!(*offset, before.count() - 1, "byte {at}");
            at += texts.token(token).len() - std::mem::take(&mut dropped);
        }
        assert_eq!(at, choice.text.len());
        assert!(logprobs.tokens.contains(&"bytes:\\xe6".to_owned()));
        let mut different: Vec<_> = ids.clone();
        different.sort_unstable();
        different.dedup();
        assert_eq!(logprobs.top_logprobs[0].len(), different.len());
    }
}
