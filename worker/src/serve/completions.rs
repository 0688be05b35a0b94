//! `POST /v1/completions`: a text that the caller has rendered, continued.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use protocol::openai::{
    Completion, CompletionChoice, CompletionLogprobs, CompletionPrompt, CompletionRequest,
    FinishReason, Options, Usage,
};
use protocol::sse;
use shell::clock;

use super::app::{App, Shared, unique};
use super::ask::{Answers, Coming, Question, ask};
use super::body;
use super::chat::{usage, within_characters};
use super::images::blocking;
use super::refusal::Refusal;
use super::sampling::{self, MAX_TOP_LOGPROBS};
use super::stream::{error_event, response};
use crate::engine::{Event, TokenEvent};
use crate::prompt::{Piece, Prompt};

/// Tokens of an answer when nothing is asked for, as OpenAI has it.
const DEFAULT_TOKENS: usize = 16;

/// Continues a text.
pub(super) async fn handle(
    State(app): State<Shared>,
    request: Request,
) -> Result<Response, Refusal> {
    let ticket = app.gate.enter()?;
    let (parts, body) = request.into_parts();
    let bytes = body::read(&parts.headers, body, &app.limits).await?;
    let worker = Arc::clone(&app);
    let (question, writer) = blocking(move || read(&worker, &bytes)).await??;
    let mut answers = ask(&app, question, ticket).await?;
    if writer.stream {
        return Ok(stream(app, answers, writer));
    }
    let mut choices: Vec<_> = (0..writer.answers)
        .map(|_| Some(Choice::default()))
        .collect();
    let mut done: BTreeMap<usize, CompletionChoice> = BTreeMap::new();
    let mut tokens = 0;
    while done.len() < writer.answers {
        match answers.next(app.limits.keep_alive).await {
            Coming::Silence | Coming::Event(_, Event::Started { .. }) => {}
            Coming::Event(index, Event::Token(token)) => {
                if let Some(choice) = &mut choices[index] {
                    choice.add(&app, &writer, &token);
                }
            }
            Coming::Event(
                index,
                Event::Finished {
                    text,
                    reason,
                    tokens: count,
                },
            ) => {
                tokens += count;
                if let Some(choice) = choices[index].take() {
                    done.insert(index, choice.finish(&writer, index, &text, reason));
                }
            }
            Coming::Event(_, Event::Failed(failure)) => return Err(failure.into()),
        }
    }
    let usage = usage(&answers, tokens);
    Ok(Json(writer.completion(done.into_values().collect(), Some(usage))).into_response())
}

/// What every chunk of an answer has in common.
struct Writer {
    id: String,
    created: u64,
    model: String,
    answers: usize,
    logprobs: bool,
    stream: bool,
    usage: bool,
    echo: Option<String>,
}

fn read(app: &App, bytes: &[u8]) -> Result<(Question, Writer), Refusal> {
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
    let writer = Writer {
        id: unique("cmpl"),
        created: clock::unix_millis() / 1000,
        model,
        answers: generation.answers,
        logprobs: request.logprobs.is_some(),
        stream: options.streams(),
        usage: options.includes_usage(),
        echo: request.echo.unwrap_or(false).then_some(text),
    };
    let question = Question {
        prompt,
        images: Vec::new(),
        generation,
        logprobs: request.logprobs.map(|top| top as usize),
    };
    Ok((question, writer))
}

fn prompt(app: &App, prompt: CompletionPrompt) -> Result<(String, Prompt), Refusal> {
    let text = match prompt {
        CompletionPrompt::Text(text) => text,
        CompletionPrompt::Texts(mut texts) => match (texts.pop(), texts.is_empty()) {
            (Some(text), true) => text,
            _ => return Err(Refusal::value("prompt", "`prompt` must be one text")),
        },
        CompletionPrompt::Tokens(ids) => {
            if ids.is_empty() || ids.iter().any(|&id| id as usize >= app.vocab) {
                return Err(Refusal::value(
                    "prompt",
                    "`prompt` must hold tokens of the vocabulary",
                ));
            }
            let text = app.texts.decode(&ids);
            let prompt = Prompt {
                text: text.clone(),
                pieces: vec![Piece::Text(ids)],
                stop: Vec::new(),
            };
            return Ok((text, prompt));
        }
    };
    within_characters(app, text.chars().count(), "prompt")?;
    let prompt = app
        .texts
        .rendered(&text, 0)
        .map_err(|problem| Refusal::invalid("invalid_prompt", Some("prompt"), problem))?;
    if prompt.text_tokens() == 0 {
        return Err(Refusal::value("prompt", "`prompt` is empty"));
    }
    Ok((text, prompt))
}

/// One answer as it grows.
#[derive(Default)]
struct Choice {
    text: String,
    logprobs: CompletionLogprobs,
    offset: usize,
}

impl Choice {
    fn add(&mut self, app: &App, writer: &Writer, token: &TokenEvent) {
        if writer.logprobs {
            let text = app.texts.token(token.token);
            self.logprobs.text_offset.push(self.offset);
            self.offset += text.chars().count();
            self.logprobs.tokens.push(text);
            self.logprobs
                .token_logprobs
                .push(token.logprob.unwrap_or_default());
            let top = token
                .top
                .iter()
                .map(|c| (app.texts.token(c.token), c.logprob));
            self.logprobs.top_logprobs.push(top.collect());
        }
        self.text += &token.text;
    }

    /// What has come since the last time.
    fn take(
        &mut self,
        writer: &Writer,
        index: usize,
        finish_reason: Option<FinishReason>,
    ) -> CompletionChoice {
        CompletionChoice {
            text: std::mem::take(&mut self.text),
            index: index as u32,
            logprobs: writer.logprobs.then(|| std::mem::take(&mut self.logprobs)),
            finish_reason,
        }
    }

    fn finish(
        mut self,
        writer: &Writer,
        index: usize,
        rest: &str,
        reason: FinishReason,
    ) -> CompletionChoice {
        self.text += rest;
        if let Some(echo) = &writer.echo {
            self.text.insert_str(0, echo);
        }
        self.take(writer, index, Some(reason))
    }
}

impl Writer {
    fn completion(&self, choices: Vec<CompletionChoice>, usage: Option<Usage>) -> Completion {
        Completion {
            id: self.id.clone(),
            object: "text_completion".to_owned(),
            created: self.created,
            model: self.model.clone(),
            choices,
            usage,
        }
    }

    fn event(&self, choices: Vec<CompletionChoice>, usage: Option<Usage>) -> Bytes {
        let completion = self.completion(choices, usage);
        sse::event(&serde_json::to_string(&completion).unwrap_or_default())
    }
}

fn stream(app: Shared, mut answers: Answers, writer: Writer) -> Response {
    let patience = app.limits.keep_alive;
    response(async_stream::stream! {
        let mut choices: Vec<Choice> = (0..writer.answers).map(|_| Choice::default()).collect();
        if let Some(echo) = &writer.echo {
            for (index, choice) in choices.iter_mut().enumerate() {
                choice.text.clone_from(echo);
                yield writer.event(vec![choice.take(&writer, index, None)], None);
            }
        }
        let (mut open, mut tokens) = (writer.answers, 0);
        while open > 0 {
            match answers.next(patience).await {
                Coming::Silence => yield Bytes::from_static(sse::KEEP_ALIVE),
                Coming::Event(_, Event::Started { .. }) => {}
                Coming::Event(index, Event::Token(token)) => {
                    choices[index].add(&app, &writer, &token);
                    if !choices[index].text.is_empty() {
                        yield writer.event(vec![choices[index].take(&writer, index, None)], None);
                    }
                }
                Coming::Event(index, Event::Finished { text, reason, tokens: count }) => {
                    choices[index].text += &text;
                    yield writer.event(vec![choices[index].take(&writer, index, Some(reason))], None);
                    open -= 1;
                    tokens += count;
                }
                Coming::Event(_, Event::Failed(failure)) => {
                    yield error_event(failure);
                    return;
                }
            }
        }
        if writer.usage {
            yield writer.event(Vec::new(), Some(usage(&answers, tokens)));
        }
        yield sse::event(sse::DONE);
    })
}
