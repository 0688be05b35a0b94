//! `POST /v1/chat/completions`.

mod check;
mod form;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;

use super::app::Shared;
use super::arrival::{Arrival, Received, receive};
use super::ask::{Question, ask};
use super::blocking::blocking;
use super::buffers::Share;
use super::gate::Ticket;
use super::refusal::Refusal;
use super::reply::{Head, reply};
use check::Asked;
use form::ChatForm;

/// Answers a chat.
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
    let read = move || check::read(&worker, &bytes);
    let ((ticket, share), asked) = blocking((ticket, share), read).await?;
    answer(app, asked?, share, arrival, ticket).await
}

async fn answer(
    app: Shared,
    asked: Asked,
    mut share: Share,
    arrival: Arrival,
    ticket: Ticket,
) -> Result<Response, Refusal> {
    let mut sources = Vec::with_capacity(asked.images.len());
    for (param, url) in asked.images {
        sources.push(app.images.fetch(&param, &url, &mut share).await?);
    }
    let ((ticket, share), images) = app.images.read((ticket, share), sources).await?;
    drop(share);
    let texts = Arc::clone(&app.texts);
    let messages = asked.messages;
    let (ticket, prompt) = blocking(ticket, move || texts.chat(&messages)).await?;
    let prompt = prompt
        .map_err(|problem| Refusal::invalid("invalid_messages", Some("messages"), problem))?;
    let answers = asked.generation.answers;
    let question = Question {
        arrival,
        field: "messages",
        prompt,
        images,
        generation: asked.generation,
        logprobs: asked.logprobs,
        streams: asked.stream,
    };
    let head = Head::new("chatcmpl", asked.model, answers, asked.usage);
    let form = ChatForm::new(head, Arc::clone(&app.texts), asked.logprobs.is_some());
    let answers = ask(&app, question, ticket).await?;
    reply(&app, answers, form).await
}
