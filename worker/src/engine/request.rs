//! What comes into the engine and what comes out of it.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::openai::FinishReason;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

use super::decoder::Decode;
use super::key::ImageHash;
use crate::input::ImageFeatures;
use crate::pixels::PixelValues;
use crate::sampling::{Candidate, SamplingParams};

/// One answer wanted.
#[derive(Clone)]
pub struct Request {
    /// The prompt, in order.
    pub prompt: Vec<PromptPiece>,
    /// Longest answer in tokens, at least 1.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// Alternatives to report for each token; `None` reports no probabilities at all.
    pub logprobs: Option<usize>,
    /// Whether tokens go out as they come. Else they are kept until the end and go out
    /// together: waking a reader for each, who only gathers them, takes time from the steps.
    pub streams: bool,
    /// Turns tokens into text.
    pub decode: Decode,
    /// When its head came.
    pub arrived: Instant,
    /// When it is given up, if it has not begun and cannot begin then.
    pub deadline: Option<Instant>,
    /// Where the answer goes. Dropping the other end ends the request.
    pub events: UnboundedSender<Event>,
    /// Told once the last event was sent, for readers that do not look at each as it comes.
    pub ended: Arc<Notify>,
}

/// A part of a prompt.
#[derive(Clone, Debug)]
pub enum PromptPiece {
    /// Token ids.
    Tokens(Vec<u32>),
    /// An image.
    Image(ImageInput),
}

/// An image, encoded already or not.
#[derive(Clone, Debug)]
pub struct ImageInput {
    /// What it is known by.
    pub hash: ImageHash,
    /// Positions that it takes.
    pub tokens: usize,
    /// What is at hand of it.
    pub content: ImageContent,
}

/// What is at hand of an image.
#[derive(Clone, Debug)]
pub enum ImageContent {
    /// Pixels for the tower; requests that show the same image share them.
    Pixels(Arc<Prepared>),
    /// What the tower made of it for an earlier request.
    Features(ImageFeatures),
}

/// Pixels, and what is let go with them: their share of a memory that is counted.
pub struct Prepared {
    pixels: PixelValues,
    _share: Box<dyn Send + Sync>,
}

impl Prepared {
    /// Pixels that hold `share`.
    pub fn new(pixels: PixelValues, share: impl Send + Sync + 'static) -> Self {
        Self {
            pixels,
            _share: Box::new(share),
        }
    }
}

impl Deref for Prepared {
    type Target = PixelValues;

    fn deref(&self) -> &PixelValues {
        &self.pixels
    }
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Prepared").field(&self.tiles).finish()
    }
}

/// What happens to a request, in order; nothing follows `Finished` or `Failed`.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It has a slot.
    Started {
        /// Tokens of the prompt that another request had computed.
        cached_tokens: usize,
    },
    /// Something new; the text may be empty while the token is part of a character.
    Token(TokenEvent),
    /// The answer is complete.
    Finished {
        /// Text that was held back until now.
        text: String,
        /// Why.
        reason: FinishReason,
        /// Tokens of the answer.
        tokens: usize,
    },
    /// The answer broke off.
    Failed(Failure),
}

/// One token of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenEvent {
    /// The token.
    pub token: u32,
    /// Text that is certain now; empty while a character or a stop text may go on.
    pub text: String,
    /// Its probability, if asked for.
    pub logprob: Option<f32>,
    /// The most probable tokens, if asked for.
    pub top: Vec<Candidate>,
}

/// Why a request has no whole answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It waited too long for a slot.
    #[error("waited {} s for a free slot", .0.as_secs())]
    Expired(Duration),
    /// The worker is stopping and its grace is over.
    #[error("the worker is stopping")]
    Stopping,
    /// The model failed on it. What it said is in the log.
    #[error("the model failed on this request")]
    Model,
    /// The engine is gone.
    #[error("the engine has stopped")]
    Gone,
}

impl Request {
    /// Positions that the prompt takes.
    #[must_use]
    pub fn prompt_tokens(&self) -> usize {
        self.prompt.iter().map(PromptPiece::tokens).sum()
    }
}

impl PromptPiece {
    fn tokens(&self) -> usize {
        match self {
            Self::Tokens(ids) => ids.len(),
            Self::Image(image) => image.tokens,
        }
    }
}

impl fmt::Debug for Request {
    /// Shapes only: what users write stays out of logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("prompt_tokens", &self.prompt_tokens())
            .field("max_tokens", &self.max_tokens)
            .finish_non_exhaustive()
    }
}
