//! `POST /v1/completions`: a text that the caller has rendered, continued.

mod form;
mod offset;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use protocol::openai::{CompletionPrompt, CompletionRequest, Options};

use super::app::{App, Shared};
use super::arrival::{Arrival, Received, receive};
use super::ask::{Question, ask, room};
use super::blocking::blocking;
use super::body;
use super::refusal::Refusal;
use super::reply::{Head, reply};
use super::sampling::{self, MAX_TOP_LOGPROBS};
use crate::prompt::{Piece, Prompt};
use form::TextForm;

/// Tokens of an answer when nothing is asked for, as OpenAI has it.
const DEFAULT_TOKENS: usize = 16;

/// Continues a text.
pub(super) async fn handle(
    State(app): State<Shared>,
    request: Request,
) -> Result<Response, Refusal> {
    let Received {
        ticket,
        bytes,
        share,
        arrival,
    } = receive(&app, request).await?;
    let worker = Arc::clone(&app);
    let read = move || read(&worker, &bytes, arrival);
    let ((ticket, share), read) = blocking((ticket, share), read).await?;
    let (question, form) = read?;
    drop(share);
    let answers = ask(&app, question, ticket).await?;
    reply(&app, answers, form).await
}

fn read(app: &App, bytes: &[u8], arrival: Arrival) -> Result<(Question, TextForm), Refusal> {
    let options: Options = body::parse(bytes)?;
    let request: CompletionRequest = body::parse(bytes)?;
    let model = app.model(options.model.as_deref())?;
    let mut generation = sampling::check(&options, &app.limits)?;
    generation.max_tokens.get_or_insert(DEFAULT_TOKENS);
    if request.suffix.is_some_and(|suffix| !suffix.is_empty()) {
        return Err(Refusal::unsupported(
            "suffix",
            "this server does not fill in: leave `suffix` out",
        ));
    }
    if request
        .best_of
        .is_some_and(|best| best != generation.answers as u64)
    {
        return Err(Refusal::unsupported(
            "best_of",
            "this server gives every answer: leave `best_of` out",
        ));
    }
    if request.logprobs.is_some_and(|top| top > MAX_TOP_LOGPROBS) {
        return Err(Refusal::value(
            "logprobs",
            format!("`logprobs` must be at most {MAX_TOP_LOGPROBS}"),
        ));
    }
    let (text, prompt) = prompt(app, request.prompt)?;
    let head = Head::new("cmpl", model, generation.answers, options.includes_usage());
    let echo = request.echo.unwrap_or(false).then_some(text);
    let form = TextForm::new(
        head,
        Arc::clone(&app.texts),
        request.logprobs.is_some(),
        echo.unwrap_or_default(),
    );
    let question = Question {
        arrival,
        field: "prompt",
        prompt,
        images: Vec::new(),
        generation,
        logprobs: request.logprobs.map(|top| top as usize),
        streams: options.streams(),
    };
    Ok((question, form))
}

fn prompt(app: &App, prompt: CompletionPrompt) -> Result<(String, Prompt), Refusal> {
    let text = match prompt {
        CompletionPrompt::Text(text) => text,
        CompletionPrompt::Texts(mut texts) => match (texts.pop(), texts.is_empty()) {
            (Some(text), true) => text,
            _ => return Err(Refusal::value("prompt", "`prompt` must be one text")),
        },
        CompletionPrompt::Tokens(ids) => {
            return tokens(ids, app.context, app.vocab, |ids| {
                app.texts.decoder().text(ids)
            });
        }
    };
    app.within_characters(text.chars().count(), "prompt")?;
    let prompt = app
        .texts
        .rendered(&text, 0)
        .map_err(|problem| Refusal::invalid("invalid_prompt", Some("prompt"), problem))?;
    if prompt.text_tokens() == 0 {
        return Err(Refusal::value("prompt", "`prompt` is empty"));
    }
    Ok((text, prompt))
}

/// A prompt of tokens, decoded once it is known to leave room for an answer.
fn tokens(
    ids: Vec<u32>,
    context: usize,
    vocab: usize,
    decode: impl FnOnce(&[u32]) -> String,
) -> Result<(String, Prompt), Refusal> {
    room(context, ids.len(), "prompt")?;
    if ids.is_empty() || ids.iter().any(|&id| id as usize >= vocab) {
        return Err(Refusal::value(
            "prompt",
            "`prompt` must hold tokens of the vocabulary",
        ));
    }
    let text = decode(&ids);
    let prompt = Prompt {
        text: text.clone(),
        pieces: vec![Piece::Text(ids)],
        stop: Vec::new(),
    };
    Ok((text, prompt))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_beyond_the_context_are_refused_before_they_are_decoded() {
        let decode = |ids: &[u32]| "x".repeat(ids.len());
        let (text, prompt) = tokens(vec![1; 9], 10, 5, decode).unwrap();
        assert_eq!((text.len(), prompt.text_tokens()), (9, 9));
        let never = |_: &[u32]| unreachable!("too long to be decoded");
        let refusal = tokens(vec![1; 10], 10, 5, never).unwrap_err();
        assert_eq!(refusal.code(), "context_length_exceeded");
        for ids in [vec![], vec![5]] {
            let refusal = tokens(ids, 10, 5, never).unwrap_err();
            assert_eq!(refusal.error.param.as_deref(), Some("prompt"));
        }
    }
}
