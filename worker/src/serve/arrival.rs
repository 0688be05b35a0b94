//! How a request comes in: a place first, then its body. What its caller waits
//! for is counted from the head; patience with it only from the whole body, as
//! nobody may be given up for a slow upload, which has limits of its own.

use std::time::Instant;

use axum::extract::Request;
use bytes::Bytes;
use shell::clock;

use super::app::App;
use super::body;
use super::buffers::Share;
use super::gate::Ticket;
use super::refusal::Refusal;

/// Set on every request: when its head was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadCame(pub Instant);

/// When a request came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrival {
    /// Its head.
    pub head: Instant,
    /// The last byte of its body.
    pub body: Instant,
}

/// A request that is here.
#[derive(Debug)]
pub(super) struct Received {
    /// Its place.
    pub ticket: Ticket,
    /// Its whole body.
    pub bytes: Bytes,
    /// What the body takes of the memory for all; to be kept until what it brings is read.
    pub share: Share,
    /// When it came.
    pub arrival: Arrival,
}

/// Takes a place and reads the body.
///
/// # Errors
/// 429 or 503 when there is no place or memory, or what is wrong with the body.
pub(super) async fn receive(app: &App, request: Request) -> Result<Received, Refusal> {
    let (parts, body) = request.into_parts();
    let ticket = match app.gate.enter() {
        Ok(ticket) => ticket,
        Err(refusal) => {
            body::leave_unread(&parts.headers, body).await;
            return Err(refusal);
        }
    };
    let mut share = app.buffers.share();
    let bytes = body::read(&parts.headers, body, &app.limits, &mut share).await?;
    let now = clock::now();
    let head = parts.extensions.get::<HeadCame>();
    Ok(Received {
        ticket,
        bytes,
        share,
        arrival: Arrival {
            head: head.map_or(now, |head| head.0),
            body: now,
        },
    })
}
