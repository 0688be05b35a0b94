//! `/worker_generate_stream` and `/worker_get_status` as LLaVA's own clients
//! expect them: NUL-terminated frames with the prompt and everything generated
//! so far, `error_code` 0 or 1.
//!
//! What hurt people there is mended: `stop` ends the answer (it only cut the
//! text), an empty or missing `stop` is no error, nothing breaks off after 15 s
//! of silence, images count with the tokens they really take, and an error says
//! what went wrong. Source: `llava/serve/model_worker.py`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use protocol::llava::{Chunk, Code, EXCEEDS_LENGTH, SERVER_ERROR, Status};
use protocol::nul;
use serde::Deserialize;
use serde_json::Value;

use super::app::{App, Shared};
use super::arrival::{Received, receive};
use super::ask::{Answers, Coming, Question, ask};
use super::blocking::blocking;
use super::body;
use super::gate::Ticket;
use super::images::{Source, base64_bytes};
use super::refusal::Refusal;
use super::sampling::Generation;
use crate::engine::Event;
use crate::sampling::SamplingParams;

const IMAGE: &str = "<image>";
const DEFAULT_TOKENS: usize = 256;

/// The body. Numbers may come as strings: the original calls `float` and `int` on them.
#[derive(Debug, Deserialize)]
struct GenerateRequest {
    prompt: String,
    #[serde(default)]
    images: Option<Vec<String>>,
    #[serde(default)]
    temperature: Option<Value>,
    #[serde(default)]
    top_p: Option<Value>,
    #[serde(default)]
    max_new_tokens: Option<Value>,
    #[serde(default)]
    stop: Option<String>,
}

/// Who waits and who is served.
pub(super) async fn status(State(app): State<Shared>) -> Json<Status> {
    Json(Status {
        model_names: app.names.clone(),
        speed: 1,
        queue_length: app.status.load().queue_length(),
    })
}

/// Streams an answer.
pub(super) async fn generate(State(app): State<Shared>, request: Request) -> Response {
    match try_generate(app, request).await {
        Ok(response) => response,
        Err(refusal) => {
            let mut response = frames(futures::stream::once(std::future::ready(failed(&refusal))));
            // The original answers 200 whatever happens, but a refusal for want of
            // room must be seen by whoever balances load.
            if refusal.status.is_server_error() || refusal.retry_after.is_some() {
                refusal.mark(&mut response);
            } else {
                refusal.note(&mut response);
            }
            response
        }
    }
}

async fn try_generate(app: Shared, request: Request) -> Result<Response, Refusal> {
    let Received {
        ticket,
        bytes,
        share,
        arrival,
    } = receive(&app, request).await?;
    let worker = Arc::clone(&app);
    let read = move || read(&worker, &bytes);
    let ((ticket, share), read) = blocking((ticket, share), read).await?;
    let (request, sources) = read?;
    let ((ticket, share), images) = app.images.read((ticket, share), sources).await?;
    drop(share);
    let worker = Arc::clone(&app);
    let (text, count) = (request.prompt.clone(), images.len());
    let render = move || worker.texts.rendered(&text, count);
    let (ticket, prompt) = blocking(ticket, render).await?;
    let prompt =
        prompt.map_err(|problem| Refusal::invalid("invalid_prompt", Some("prompt"), problem))?;
    let generation = generation(&request)?;
    let question = Question {
        arrival,
        field: "prompt",
        prompt,
        images,
        generation,
        logprobs: None,
        streams: true,
    };
    answer(&app, request.prompt, question, ticket).await
}

async fn answer(
    app: &Shared,
    prompt: String,
    question: Question,
    ticket: Ticket,
) -> Result<Response, Refusal> {
    let patience = app.limits.keep_alive;
    let empty = question.generation.max_tokens == Some(0);
    let answers = if empty {
        None
    } else {
        Some(ask(app, question, ticket).await)
    };
    match answers {
        None => Ok(exceeds(&prompt)),
        Some(Err(refusal)) if refusal.code() == "context_length_exceeded" => Ok(exceeds(&prompt)),
        Some(Err(refusal)) => Err(refusal),
        Some(Ok(answers)) => Ok(frames(stream(patience, prompt, answers))),
    }
}

fn exceeds(prompt: &str) -> Response {
    let text = format!("{prompt}{EXCEEDS_LENGTH}");
    frames(futures::stream::once(std::future::ready(frame(
        text,
        Code::Ok,
    ))))
}

fn read(app: &App, bytes: &[u8]) -> Result<(GenerateRequest, Vec<Source>), Refusal> {
    let mut request: GenerateRequest = body::parse(bytes)?;
    app.within_characters(request.prompt.chars().count(), "prompt")?;
    let images = request.images.take().unwrap_or_default();
    if images.len() > app.limits.max_images {
        let message = format!(
            "{} images exceed the limit of {}",
            images.len(),
            app.limits.max_images
        );
        return Err(Refusal::invalid("too_many_images", Some("images"), message));
    }
    let slots = request.prompt.matches(IMAGE).count();
    if !images.is_empty() && images.len() != slots {
        let message = format!(
            "Number of images ({}) does not match number of <image> tokens in prompt ({slots})",
            images.len()
        );
        return Err(Refusal::invalid(
            "image_count_mismatch",
            Some("images"),
            message,
        ));
    }
    let sources = images.iter().enumerate().map(|(index, image)| {
        let param = format!("images[{index}]");
        // A data: URI is what browsers give; the original knows base64 alone.
        let data = match image.split_once(";base64,") {
            Some((_, data)) => data,
            None => image,
        };
        base64_bytes(data)
            .map(|bytes| Source {
                param: param.clone(),
                bytes,
            })
            .ok_or_else(|| {
                Refusal::invalid(
                    "invalid_base64",
                    Some(&param),
                    format!("{param} is not base64"),
                )
            })
    });
    let sources = sources.collect::<Result<_, _>>()?;
    Ok((request, sources))
}

fn generation(request: &GenerateRequest) -> Result<Generation, Refusal> {
    let temperature = number("temperature", request.temperature.as_ref(), 1.0)?;
    let top_p = number("top_p", request.top_p.as_ref(), 1.0)?;
    let max_tokens = number(
        "max_new_tokens",
        request.max_new_tokens.as_ref(),
        DEFAULT_TOKENS as f64,
    )?;
    Ok(Generation {
        sampling: SamplingParams {
            temperature: temperature.clamp(0.0, 100.0) as f32,
            top_p: (top_p as f32).clamp(f32::MIN_POSITIVE, 1.0),
            seed: rand::random(),
            ..SamplingParams::default()
        },
        max_tokens: Some(max_tokens.max(0.0) as usize),
        stop: request
            .stop
            .iter()
            .filter(|stop| !stop.is_empty())
            .cloned()
            .collect(),
        answers: 1,
    })
}

fn number(name: &str, value: Option<&Value>, default: f64) -> Result<f64, Refusal> {
    let number = match value {
        None | Some(Value::Null) => Some(default),
        Some(Value::String(text)) => text.trim().parse().ok(),
        Some(value) => value.as_f64(),
    };
    number
        .filter(|number| number.is_finite())
        .ok_or_else(|| Refusal::value(name, format!("`{name}` is not a number")))
}

fn stream(
    patience: Duration,
    prompt: String,
    mut answers: Answers,
) -> impl futures::Stream<Item = Bytes> + Send {
    async_stream::stream! {
        let mut text = prompt;
        loop {
            match answers.next(patience).await {
                // Clients skip empty frames, and proxies see life.
                Coming::Silence => yield Bytes::from_static(&[0]),
                Coming::Event(_, Event::Started { .. }) => {}
                Coming::Event(_, Event::Token(token)) => {
                    if !token.text.is_empty() {
                        text += &token.text;
                        yield frame(text.clone(), Code::Ok);
                    }
                }
                Coming::Event(_, Event::Finished { text: rest, .. }) => {
                    text += &rest;
                    yield frame(text.clone(), Code::Ok);
                    return;
                }
                Coming::Event(_, Event::Failed(failure)) => {
                    yield failed(&failure.into());
                    return;
                }
            }
        }
    }
}

fn failed(refusal: &Refusal) -> Bytes {
    frame(
        format!("{SERVER_ERROR} ({})", refusal.error.message),
        Code::Worker,
    )
}

fn frame(text: String, code: Code) -> Bytes {
    let chunk = Chunk {
        text,
        error_code: code as u8,
    };
    nul::frame(&serde_json::to_string(&chunk).unwrap_or_default())
}

fn frames(frames: impl futures::Stream<Item = Bytes> + Send + 'static) -> Response {
    use futures::StreamExt;
    Response::new(Body::from_stream(frames.map(Ok::<_, Infallible>)))
}
