//! What can be asked beside answers: models, load, and how a text is tokenised.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use protocol::load::LoadReport;
use protocol::openai::{Model, ModelList};
use serde::{Deserialize, Serialize};

use super::app::{App, Shared};
use super::arrival::{Received, receive};
use super::blocking::blocking;
use super::body;
use super::refusal::Refusal;

/// `GET /v1/models`.
pub(super) async fn models(State(app): State<Shared>) -> Json<ModelList> {
    Json(ModelList {
        object: "list".to_owned(),
        data: app.names.iter().map(|name| describe(&app, name)).collect(),
    })
}

/// `GET /v1/models/{name}`.
pub(super) async fn model(
    State(app): State<Shared>,
    Path(name): Path<String>,
) -> Result<Json<Model>, Refusal> {
    let name = app.model(Some(&name))?;
    Ok(Json(describe(&app, &name)))
}

fn describe(app: &App, name: &str) -> Model {
    Model {
        id: name.to_owned(),
        object: "model".to_owned(),
        created: app.created,
        owned_by: "llava-operator".to_owned(),
    }
}

/// `GET /v1/load`.
pub(super) async fn load(State(app): State<Shared>) -> Json<LoadReport> {
    Json(app.status.load())
}

/// The body of `POST /tokenize`.
#[derive(Debug, Deserialize)]
struct TokenizeRequest {
    prompt: String,
}

/// Tokens of a text.
#[derive(Debug, Serialize)]
pub(super) struct Tokenized {
    count: usize,
    max_model_len: usize,
    tokens: Vec<u32>,
}

/// `POST /tokenize`.
pub(super) async fn tokenize(
    State(app): State<Shared>,
    request: Request,
) -> Result<Json<Tokenized>, Refusal> {
    let Received {
        ticket,
        bytes,
        share,
        ..
    } = receive(&app, request).await?;
    let worker = Arc::clone(&app);
    let read = move || {
        let request: TokenizeRequest = body::parse(&bytes)?;
        worker.within_characters(request.prompt.chars().count(), "prompt")?;
        worker
            .texts
            .rendered(&request.prompt, 0)
            .map_err(|problem| Refusal::invalid("invalid_prompt", Some("prompt"), problem))
    };
    let (_held, prompt) = blocking((ticket, share), read).await?;
    let pieces = prompt?.pieces.into_iter();
    let tokens: Vec<u32> = pieces
        .flat_map(|piece| match piece {
            crate::prompt::Piece::Text(ids) => ids,
            crate::prompt::Piece::Image(_) => Vec::new(),
        })
        .collect();
    Ok(Json(Tokenized {
        count: tokens.len(),
        max_model_len: app.context,
        tokens,
    }))
}
