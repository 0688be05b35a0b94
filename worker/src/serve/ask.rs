//! The way of a checked request into the engine, and of its answers back.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::stream::{BoxStream, SelectAll, StreamExt};
use protocol::openai::Usage;
use tokio::sync::Notify;
use tokio::sync::mpsc::unbounded_channel;
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::app::Shared;
use super::arrival::Arrival;
use super::gate::Ticket;
use super::refusal::Refusal;
use super::sampling::Generation;
use crate::engine::{EngineHandle, Event, Failure, ImageInput, PromptPiece, Request};
use crate::prompt::{Piece, Prompt};

/// What is asked of the engine.
#[derive(Debug)]
pub(super) struct Question {
    /// When it came.
    pub arrival: Arrival,
    /// The field of the request that the prompt is from.
    pub field: &'static str,
    /// The prompt; its image slots refer to `images`.
    pub prompt: Prompt,
    /// The images in order.
    pub images: Vec<ImageInput>,
    /// How to answer.
    pub generation: Generation,
    /// Alternatives to list for each token; `None` asks for no probabilities.
    pub logprobs: Option<usize>,
    /// Whether the answer goes out as it comes.
    pub streams: bool,
}

/// The answers to one question as they come. Dropping it ends them.
pub(super) struct Answers {
    /// Whether they go out as they come.
    pub streams: bool,
    engine: EngineHandle,
    /// Tokens of the prompt, images included.
    prompt_tokens: usize,
    /// Tokens of it that need not be computed.
    cached_tokens: usize,
    events: SelectAll<BoxStream<'static, (usize, Event)>>,
    ended: Arc<Notify>,
    first: Option<(usize, Event)>,
    finished: Vec<bool>,
    _ticket: Ticket,
}

/// Whether the prompt, which is from `field`, leaves room for an answer; gives the longest one.
///
/// # Errors
/// 400 `context_length_exceeded`.
pub(super) fn room(
    context: usize,
    prompt_tokens: usize,
    field: &'static str,
) -> Result<usize, Refusal> {
    match context.checked_sub(prompt_tokens) {
        Some(room) if room > 0 => Ok(room),
        _ => Err(Refusal::invalid(
            "context_length_exceeded",
            Some(field),
            format!(
                "the prompt has {prompt_tokens} tokens, images included; prompt and answer have room for {context}"
            ),
        )),
    }
}

/// Puts the question to the engine and waits until its first answer has a slot.
///
/// # Errors
/// Whatever keeps it from beginning, so that it is told before the first byte.
pub(super) async fn ask(
    app: &Shared,
    question: Question,
    ticket: Ticket,
) -> Result<Answers, Refusal> {
    let Question {
        arrival,
        field,
        prompt,
        images,
        generation,
        logprobs,
        streams,
    } = question;
    let count = prompt.images();
    let mut pieces = Vec::with_capacity(prompt.pieces.len());
    for piece in prompt.pieces {
        pieces.push(match piece {
            Piece::Text(ids) => PromptPiece::Tokens(ids),
            Piece::Image(index) => {
                let image = images.get(index).cloned();
                let image = image.ok_or_else(|| {
                    let message = format!(
                        "the prompt has {count} image slots, but {} images came",
                        images.len()
                    );
                    Refusal::invalid("image_count_mismatch", Some(field), message)
                })?;
                PromptPiece::Image(image)
            }
        });
    }
    let mut stop = prompt.stop;
    stop.extend(generation.stop);
    let mut request = Request {
        prompt: pieces,
        max_tokens: 1,
        sampling: generation.sampling,
        stop,
        logprobs,
        streams,
        decode: app.texts.decoder(),
        arrived: arrival.head,
        deadline: Some(arrival.body + app.limits.queue_timeout),
        events: unbounded_channel().0,
        ended: Arc::default(),
    };
    let prompt_tokens = request.prompt_tokens();
    let room = room(app.context, prompt_tokens, field)?;
    let wanted = generation.max_tokens.unwrap_or(usize::MAX);
    request.max_tokens = wanted.min(room).min(app.limits.max_output_tokens).max(1);
    if generation.answers > 1 {
        ticket.add(generation.answers - 1)?;
    }
    let ended = Arc::clone(&request.ended);
    let mut events = SelectAll::new();
    let seed = request.sampling.seed;
    for index in 0..generation.answers {
        let (to, from) = unbounded_channel();
        let mut request = request.clone();
        request.sampling.seed = seed.wrapping_add(index as u64);
        if index > 0 {
            // Once the first has begun, all have: the others follow it in the queue.
            request.deadline = None;
        }
        request.events = to;
        app.engine.submit(request)?;
        // An engine that dies drops its senders without a last word.
        let gone = futures::stream::once(async { Event::Failed(Failure::Gone) });
        let from = UnboundedReceiverStream::new(from).chain(gone);
        events.push(from.map(move |event| (index, event)).boxed());
    }
    let mut answers = Answers {
        streams,
        engine: app.engine.clone(),
        prompt_tokens,
        cached_tokens: 0,
        events,
        ended,
        first: None,
        finished: vec![false; generation.answers],
        _ticket: ticket,
    };
    let first = tokio::select! {
        first = answers.events.next() => first,
        () = app.engine.aborted() => Some((0, Event::Failed(Failure::Stopping))),
    };
    match first {
        Some((_, Event::Failed(failure))) => return Err(failure.into()),
        Some((_, Event::Started { cached_tokens })) => answers.cached_tokens = cached_tokens,
        other => answers.first = other,
    }
    Ok(answers)
}

/// What comes next.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Coming {
    /// An event of answer number `.0`.
    Event(usize, Event),
    /// Nothing for so long that the connection needs a sign of life.
    Silence,
}

impl Answers {
    /// What was counted, when the answers together have `tokens`.
    #[must_use]
    pub(super) fn usage(&self, tokens: usize) -> Usage {
        Usage::new(
            self.prompt_tokens as u64,
            self.cached_tokens as u64,
            tokens as u64,
        )
    }

    /// Waits until then, or until an answer has ended.
    pub(super) async fn rest(&mut self, until: Instant) {
        tokio::select! {
            () = sleep_until(until) => {}
            () = self.ended.notified() => {}
        }
    }

    /// The next event, or silence. Once everything is to end nobody waits for the engine, which
    /// may be in a long step.
    pub(super) async fn next(&mut self, patience: Duration) -> Coming {
        loop {
            if let Some(coming) = self.ready() {
                return coming;
            }
            let event = tokio::select! {
                event = self.events.next() => event,
                () = self.engine.aborted() => Some((0, Event::Failed(Failure::Stopping))),
                () = tokio::time::sleep(patience) => return Coming::Silence,
            };
            if let Some(coming) = self.sort(event) {
                return coming;
            }
        }
    }

    /// The next event, if it has come already.
    pub(super) fn ready(&mut self) -> Option<Coming> {
        if let Some((index, event)) = self.first.take() {
            return Some(Coming::Event(index, event));
        }
        loop {
            let event = self.events.next().now_or_never()?;
            if let Some(coming) = self.sort(event) {
                return Some(coming);
            }
        }
    }

    /// What an event means to the caller, if anything.
    fn sort(&mut self, event: Option<(usize, Event)>) -> Option<Coming> {
        match event {
            None => Some(Coming::Event(0, Event::Failed(Failure::Gone))),
            Some((_, Event::Started { .. })) => None,
            // The end of the channel of an answer that is complete.
            Some((index, Event::Failed(Failure::Gone))) if self.finished[index] => None,
            Some((index, event)) => {
                self.finished[index] |= matches!(event, Event::Finished { .. });
                Some(Coming::Event(index, event))
            }
        }
    }
}
