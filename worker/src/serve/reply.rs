//! How answers go out, whatever their form: token by token as events, or whole.

use std::sync::LazyLock;
use std::time::Duration;

use axum::response::Response;
use bytes::Bytes;
use protocol::openai::{FinishReason, Usage};
use protocol::sse;
use shell::clock;
use tokio::time::Instant;

use super::app::{Shared, unique};
use super::ask::{Answers, Coming};
use super::refusal::Refusal;
use super::stream::{error_event, response};
use crate::engine::{Event, TokenEvent};

/// What every chunk of an answer has in common.
pub(super) struct Head {
    /// The answer's own.
    pub id: String,
    /// Unix seconds.
    pub created: u64,
    /// The name that was asked for.
    pub model: String,
    /// Answers wanted.
    pub answers: usize,
    /// Whether a stream ends with token counts.
    pub usage: bool,
}

impl Head {
    /// A head with an id of its own.
    #[must_use]
    pub(super) fn new(prefix: &str, model: String, answers: usize, usage: bool) -> Self {
        Self {
            id: unique(prefix),
            created: clock::unix_millis() / 1000,
            model,
            answers,
            usage,
        }
    }
}

/// The form of one API. It gathers what comes of each answer; a stream takes
/// that out piece by piece, a whole answer in the end.
pub(super) trait Form: Send + Sized + 'static {
    /// What all chunks have in common.
    fn head(&self) -> &Head;

    /// What a stream begins with.
    fn opening(&mut self) -> Vec<Bytes>;

    /// Gathers a token of answer `index`.
    fn add(&mut self, index: usize, token: &TokenEvent);

    /// The event with what was gathered, if it holds any text.
    fn piece(&mut self, index: usize) -> Option<Bytes>;

    /// Gathers the end of answer `index`.
    fn end(&mut self, index: usize, rest: &str, reason: FinishReason);

    /// The last events of answer `index`.
    fn last_pieces(&mut self, index: usize) -> Vec<Bytes>;

    /// The event with token counts.
    fn usage(&self, usage: Usage) -> Bytes;

    /// Everything that was gathered, as one body.
    fn whole(self, usage: Usage) -> Response;
}

/// Answers in this form.
///
/// # Errors
/// Whatever ends an answer that does not stream.
pub(super) async fn reply(
    app: &Shared,
    answers: Answers,
    form: impl Form,
) -> Result<Response, Refusal> {
    if answers.streams {
        Ok(stream(app, answers, form))
    } else {
        collect(app, answers, form).await
    }
}

/// Bytes of events that go out together at most, when a reader is behind.
const AT_ONCE: usize = 16 << 10;

/// Time between two writes of a stream before its end. Nobody reads faster, and a small model
/// gives tokens so fast that a write for each would take more of the processors than the model.
const PACE: Duration = Duration::from_millis(5);

/// The next of the moments, [`PACE`] apart, at which every stream that wrote since the last one
/// writes again: together they interrupt the model once, where it would be once for each.
fn next_beat(now: Instant) -> Instant {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let start = *START;
    let into = now.saturating_duration_since(start).as_nanos() % PACE.as_nanos();
    now + PACE - Duration::from_nanos(into as u64)
}

fn stream(app: &Shared, mut answers: Answers, mut form: impl Form) -> Response {
    let patience = app.limits.keep_alive;
    response(async_stream::stream! {
        yield form.opening().concat().into();
        let (mut open, mut tokens) = (form.head().answers, 0);
        let mut next_write = Instant::now();
        while open > 0 {
            // First the rest: a token that comes during it wakes nobody.
            if Instant::now() < next_write {
                answers.rest(next_write).await;
            }
            let mut coming = Some(answers.next(patience).await);
            // What has come by now goes out in one write.
            let mut out = Vec::new();
            while let Some(now) = coming {
                match now {
                    Coming::Silence => out.extend_from_slice(sse::KEEP_ALIVE),
                    Coming::Event(_, Event::Started { .. }) => {}
                    Coming::Event(index, Event::Token(token)) => {
                        form.add(index, &token);
                        if let Some(event) = form.piece(index) {
                            out.extend_from_slice(&event);
                        }
                    }
                    Coming::Event(index, Event::Finished { text, reason, tokens: count }) => {
                        form.end(index, &text, reason);
                        out.extend(form.last_pieces(index).concat());
                        open -= 1;
                        tokens += count;
                    }
                    Coming::Event(_, Event::Failed(failure)) => {
                        out.extend_from_slice(&error_event(failure));
                        yield out.into();
                        return;
                    }
                }
                let more = open > 0 && out.len() < AT_ONCE;
                coming = if more { answers.ready() } else { None };
            }
            // A token may be a part of a character, and has no event of its own then.
            if !out.is_empty() {
                // Whoever is behind is given the rest at once.
                if out.len() < AT_ONCE {
                    next_write = next_beat(Instant::now());
                }
                yield out.into();
            }
        }
        if form.head().usage {
            yield form.usage(answers.usage(tokens));
        }
        yield sse::event(sse::DONE);
    })
}

async fn collect(
    app: &Shared,
    mut answers: Answers,
    mut form: impl Form,
) -> Result<Response, Refusal> {
    let (mut open, mut tokens) = (form.head().answers, 0);
    while open > 0 {
        match answers.next(app.limits.keep_alive).await {
            Coming::Silence | Coming::Event(_, Event::Started { .. }) => {}
            Coming::Event(index, Event::Token(token)) => form.add(index, &token),
            Coming::Event(
                index,
                Event::Finished {
                    text,
                    reason,
                    tokens: count,
                },
            ) => {
                form.end(index, &text, reason);
                open -= 1;
                tokens += count;
            }
            Coming::Event(_, Event::Failed(failure)) => return Err(failure.into()),
        }
    }
    Ok(form.whole(answers.usage(tokens)))
}
