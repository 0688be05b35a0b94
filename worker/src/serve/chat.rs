//! `POST /v1/chat/completions`.

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use protocol::openai::{
    ChatChoice, ChatChunk, ChatCompletion, ChatContent, ChatLogprobs, ChatPart, ChatRequest,
    ChunkChoice, Delta, FinishReason, Options, ReplyMessage, TokenLogprob, TopLogprob, Usage,
};
use protocol::sse;
use serde_json::Value;
use shell::clock;

use super::app::{App, Shared, unique};
use super::ask::{Answers, Coming, Question, ask};
use super::body;
use super::gate::Ticket;
use super::images::blocking;
use super::refusal::Refusal;
use super::sampling::{self, Generation, MAX_TOP_LOGPROBS};
use super::stream::{error_event, response};
use crate::engine::{Event, TokenEvent};
use crate::prompt::{Content, Message, Part, Role};

/// Answers a chat.
pub(super) async fn handle(
    State(app): State<Shared>,
    request: Request,
) -> Result<Response, Refusal> {
    let ticket = app.gate.enter()?;
    let (parts, body) = request.into_parts();
    let bytes = body::read(&parts.headers, body, &app.limits).await?;
    let asked = read(&app, bytes).await?;
    answer(app, asked, ticket).await
}

/// A chat, checked.
struct Asked {
    model: String,
    messages: Vec<Message>,
    images: Vec<(String, String)>,
    generation: Generation,
    logprobs: Option<usize>,
    stream: bool,
    usage: bool,
}

async fn read(app: &Shared, bytes: Bytes) -> Result<Asked, Refusal> {
    let app = Shared::clone(app);
    blocking(move || {
        let options: Options = body::parse(&bytes)?;
        let request: ChatRequest = body::parse(&bytes)?;
        check(&app, &options, request)
    })
    .await?
}

fn check(app: &App, options: &Options, request: ChatRequest) -> Result<Asked, Refusal> {
    let model = app.model(options.model.as_deref())?;
    let generation = sampling::check(options, &app.limits)?;
    refuse_what_is_not_done(&request)?;
    let logprobs = match (request.logprobs.unwrap_or(false), request.top_logprobs) {
        (_, Some(top)) if top > MAX_TOP_LOGPROBS => {
            let message = format!("`top_logprobs` must be at most {MAX_TOP_LOGPROBS}");
            return Err(Refusal::value("top_logprobs", message));
        }
        (false, Some(top)) if top > 0 => {
            return Err(Refusal::value(
                "top_logprobs",
                "`top_logprobs` needs `logprobs`: true",
            ));
        }
        (false, _) => None,
        (true, top) => Some(top.unwrap_or(0) as usize),
    };
    if request.messages.is_empty() {
        return Err(Refusal::value("messages", "`messages` is empty"));
    }
    let images = request.images();
    if images > app.limits.max_images {
        let message = format!(
            "{images} images exceed the limit of {} for one request",
            app.limits.max_images
        );
        return Err(Refusal::invalid(
            "too_many_images",
            Some("messages"),
            message,
        ));
    }
    let mut conversation = Conversation::default();
    for (index, message) in request.messages.into_iter().enumerate() {
        conversation.add(index, &message.role, message.content)?;
    }
    within_characters(app, conversation.characters, "messages")?;
    Ok(Asked {
        model,
        messages: conversation.messages,
        images: conversation.images,
        generation,
        logprobs,
        stream: options.streams(),
        usage: options.includes_usage(),
    })
}

/// Refuses texts that are too long to be tokenised.
pub(super) fn within_characters(app: &App, characters: usize, param: &str) -> Result<(), Refusal> {
    let limit = app.limits.max_prompt_characters;
    if characters > limit {
        let message = format!("{characters} characters of text exceed the limit of {limit}");
        return Err(Refusal::invalid("prompt_too_long", Some(param), message));
    }
    Ok(())
}

fn refuse_what_is_not_done(request: &ChatRequest) -> Result<(), Refusal> {
    if request
        .tools
        .as_ref()
        .is_some_and(|tools| !tools.is_empty())
    {
        return Err(Refusal::unsupported(
            "tools",
            "this server calls no tools: leave `tools` out",
        ));
    }
    match &request.tool_choice {
        None | Some(Value::Null) => {}
        Some(Value::String(choice)) if choice == "none" || choice == "auto" => {}
        Some(_) => {
            return Err(Refusal::unsupported(
                "tool_choice",
                "this server calls no tools: leave `tool_choice` out",
            ));
        }
    }
    match &request.response_format {
        None | Some(Value::Null) => Ok(()),
        Some(format) if format.get("type").and_then(Value::as_str) == Some("text") => Ok(()),
        Some(_) => Err(Refusal::unsupported(
            "response_format",
            "this server answers in free text only: leave `response_format` out",
        )),
    }
}

#[derive(Default)]
struct Conversation {
    messages: Vec<Message>,
    /// Field and URL of each image in order.
    images: Vec<(String, String)>,
    characters: usize,
}

impl Conversation {
    fn add(
        &mut self,
        index: usize,
        role: &str,
        content: Option<ChatContent>,
    ) -> Result<(), Refusal> {
        let role = match role {
            "system" | "developer" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            _ => {
                let message = "`role` must be system, developer, user or assistant";
                return Err(Refusal::value(&format!("messages[{index}].role"), message));
            }
        };
        let content = match content {
            None => Content::Text(String::new()),
            Some(ChatContent::Text(text)) => {
                self.characters += text.chars().count();
                Content::Text(text)
            }
            Some(ChatContent::Parts(parts)) => Content::Parts(
                parts
                    .into_iter()
                    .enumerate()
                    .map(|(part, content)| {
                        self.part(&format!("messages[{index}].content[{part}]"), content)
                    })
                    .collect::<Result<_, _>>()?,
            ),
        };
        self.messages.push(Message { role, content });
        Ok(())
    }

    fn part(&mut self, at: &str, part: ChatPart) -> Result<Part, Refusal> {
        match (part.kind.as_str(), part.text, part.image_url) {
            ("text", Some(text), _) => {
                self.characters += text.chars().count();
                Ok(Part::Text { text })
            }
            ("text", None, _) => Err(Refusal::value(
                &format!("{at}.text"),
                "a text part needs `text`",
            )),
            ("image_url", _, Some(image)) => {
                self.images
                    .push((format!("{at}.image_url"), image.url().to_owned()));
                Ok(Part::Image)
            }
            ("image_url", _, None) => Err(Refusal::value(
                &format!("{at}.image_url"),
                "an image part needs `image_url`",
            )),
            _ => {
                let message = "a part must be of type `text` or `image_url`";
                Err(Refusal::value(&format!("{at}.type"), message))
            }
        }
    }
}

async fn answer(app: Shared, asked: Asked, ticket: Ticket) -> Result<Response, Refusal> {
    let mut sources = Vec::with_capacity(asked.images.len());
    for (param, url) in asked.images {
        sources.push(app.images.fetch(&param, &url).await?);
    }
    let images = app.images.read(sources).await?;
    let texts = std::sync::Arc::clone(&app.texts);
    let messages = asked.messages;
    let prompt = blocking(move || texts.chat(&messages))
        .await?
        .map_err(|problem| Refusal::invalid("invalid_messages", Some("messages"), problem))?;
    let question = Question {
        prompt,
        images,
        generation: asked.generation,
        logprobs: asked.logprobs,
    };
    let writer = Writer {
        id: unique("chatcmpl"),
        created: clock::unix_millis() / 1000,
        model: asked.model,
        answers: question.generation.answers,
        logprobs: asked.logprobs.is_some(),
        usage: asked.usage,
    };
    let answers = ask(&app, question, ticket).await?;
    if asked.stream {
        Ok(stream(app, answers, writer))
    } else {
        collect(&app, answers, writer).await
    }
}

/// What every chunk of an answer has in common.
struct Writer {
    id: String,
    created: u64,
    model: String,
    answers: usize,
    logprobs: bool,
    usage: bool,
}

impl Writer {
    fn chunk(
        &self,
        index: usize,
        delta: Delta,
        logprobs: Option<ChatLogprobs>,
        finish: Option<FinishReason>,
    ) -> Bytes {
        self.event(
            vec![ChunkChoice {
                index: index as u32,
                delta,
                logprobs,
                finish_reason: finish,
            }],
            None,
        )
    }

    fn event(&self, choices: Vec<ChunkChoice>, usage: Option<Usage>) -> Bytes {
        let chunk = ChatChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk".to_owned(),
            created: self.created,
            model: self.model.clone(),
            choices,
            usage: self.usage.then_some(usage),
        };
        sse::event(&serde_json::to_string(&chunk).unwrap_or_default())
    }
}

fn content(text: String) -> Delta {
    Delta {
        role: None,
        content: Some(text),
    }
}

fn stream(app: Shared, mut answers: Answers, writer: Writer) -> Response {
    let patience = app.limits.keep_alive;
    response(async_stream::stream! {
        for index in 0..writer.answers {
            let first = Delta { role: Some("assistant".to_owned()), content: Some(String::new()) };
            yield writer.chunk(index, first, None, None);
        }
        let mut pending = vec![Vec::new(); writer.answers];
        let (mut open, mut tokens) = (writer.answers, 0);
        while open > 0 {
            match answers.next(patience).await {
                Coming::Silence => yield Bytes::from_static(sse::KEEP_ALIVE),
                Coming::Event(_, Event::Started { .. }) => {}
                Coming::Event(index, Event::Token(token)) => {
                    if writer.logprobs {
                        pending[index].push(token_logprob(&app, &token));
                    }
                    if !token.text.is_empty() {
                        let logprobs = writer.take(&mut pending[index]);
                        yield writer.chunk(index, content(token.text), logprobs, None);
                    }
                }
                Coming::Event(index, Event::Finished { text, reason, tokens: count }) => {
                    if !text.is_empty() || !pending[index].is_empty() {
                        let logprobs = writer.take(&mut pending[index]);
                        yield writer.chunk(index, content(text), logprobs, None);
                    }
                    yield writer.chunk(index, Delta::default(), None, Some(reason));
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

impl Writer {
    fn take(&self, pending: &mut Vec<TokenLogprob>) -> Option<ChatLogprobs> {
        self.logprobs.then(|| ChatLogprobs {
            content: std::mem::take(pending),
        })
    }
}

pub(super) fn usage(answers: &Answers, tokens: usize) -> Usage {
    Usage::new(
        answers.prompt_tokens as u64,
        answers.cached_tokens as u64,
        tokens as u64,
    )
}

async fn collect(app: &Shared, mut answers: Answers, writer: Writer) -> Result<Response, Refusal> {
    let mut texts = vec![String::new(); writer.answers];
    let mut logprobs = vec![Vec::new(); writer.answers];
    let mut reasons = vec![None; writer.answers];
    let mut tokens = 0;
    while reasons.iter().any(Option::is_none) {
        match answers.next(app.limits.keep_alive).await {
            Coming::Silence | Coming::Event(_, Event::Started { .. }) => {}
            Coming::Event(index, Event::Token(token)) => {
                if writer.logprobs {
                    logprobs[index].push(token_logprob(app, &token));
                }
                texts[index] += &token.text;
            }
            Coming::Event(
                index,
                Event::Finished {
                    text,
                    reason,
                    tokens: count,
                },
            ) => {
                texts[index] += &text;
                reasons[index] = Some(reason);
                tokens += count;
            }
            Coming::Event(_, Event::Failed(failure)) => return Err(failure.into()),
        }
    }
    let choices = texts.into_iter().zip(logprobs).zip(reasons).enumerate();
    let choices = choices.map(|(index, ((content, logprobs), finish_reason))| ChatChoice {
        index: index as u32,
        message: ReplyMessage {
            role: "assistant".to_owned(),
            content,
            refusal: None,
        },
        logprobs: writer
            .logprobs
            .then_some(ChatLogprobs { content: logprobs }),
        finish_reason,
    });
    Ok(Json(ChatCompletion {
        choices: choices.collect(),
        usage: usage(&answers, tokens),
        id: writer.id,
        object: "chat.completion".to_owned(),
        created: writer.created,
        model: writer.model,
    })
    .into_response())
}

fn token_logprob(app: &App, token: &TokenEvent) -> TokenLogprob {
    let text = app.texts.token(token.token);
    TokenLogprob {
        bytes: text.clone().into_bytes(),
        token: text,
        logprob: token.logprob.unwrap_or_default(),
        top_logprobs: token
            .top
            .iter()
            .map(|candidate| {
                let text = app.texts.token(candidate.token);
                TopLogprob {
                    bytes: text.clone().into_bytes(),
                    token: text,
                    logprob: candidate.logprob,
                }
            })
            .collect(),
    }
}
