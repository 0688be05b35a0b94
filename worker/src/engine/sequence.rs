//! One request in the engine: what it still needs of its images, and the way
//! of its tokens through sampler, detokeniser and stop texts to the caller.

use std::time::Instant;

use protocol::openai::FinishReason;

use super::detokenizer::Detokenizer;
use super::key::Key;
use super::request::{Event, Failure, ImageContent, ImageInput, PromptPiece, Request, TokenEvent};
use super::stop::StopTexts;
use crate::input::ImageFeatures;
use crate::sampling::{Sampler, logprob, top};

/// A request between its arrival and its end.
#[derive(Debug)]
pub struct Sequence {
    /// The images in order.
    pub images: Vec<ImageInput>,
    /// The same, as far as they are encoded.
    pub features: Vec<Option<ImageFeatures>>,
    /// When it came in, ran, and spoke.
    pub times: Times,
    request: Request,
    detokenizer: Detokenizer,
    stops: StopTexts,
    sampler: Sampler,
    generated: usize,
    /// Tokens that go out with the end.
    kept: Vec<TokenEvent>,
}

/// When it came in, ran, and spoke.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// The head of its request.
    pub arrived: Instant,
    /// Into the engine's queue.
    pub queued: Instant,
    /// Into a slot, the first time.
    pub admitted: Option<Instant>,
    /// The first token.
    pub first: Option<Instant>,
    /// The last token so far.
    pub last: Option<Instant>,
}

/// What follows from a sampled token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// This token is the next position.
    Continue(u32),
    /// The answer is complete.
    Done(FinishReason),
    /// No logit was a number.
    Broken,
}

impl Sequence {
    /// Takes a request apart: what to compare and schedule it by, and the rest.
    #[must_use]
    pub fn new(mut request: Request, queued: Instant) -> (Key, Self) {
        let mut key = Key::default();
        let mut images = Vec::new();
        for piece in std::mem::take(&mut request.prompt) {
            match piece {
                PromptPiece::Tokens(ids) => key.extend(&ids),
                PromptPiece::Image(image) => {
                    key.push_image(image.hash, image.tokens);
                    images.push(image);
                }
            }
        }
        let features = images
            .iter()
            .map(|image| match &image.content {
                ImageContent::Features(features) => Some(features.clone()),
                ImageContent::Pixels(_) => None,
            })
            .collect();
        let sequence = Self {
            images,
            features,
            times: Times {
                arrived: request.arrived,
                queued,
                admitted: None,
                first: None,
                last: None,
            },
            detokenizer: Detokenizer::new(request.decode.clone()),
            stops: StopTexts::new(std::mem::take(&mut request.stop)),
            sampler: Sampler::new(request.sampling.clone(), key.tokens()),
            generated: 0,
            kept: Vec::new(),
            request,
        };
        (key, sequence)
    }

    /// Whether nobody waits for the answer any more.
    #[must_use]
    pub fn is_abandoned(&self) -> bool {
        self.request.events.is_closed()
    }

    /// When it is given up, if it has not begun and cannot begin then.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.request.deadline
    }

    /// Tiles of each image that must be encoded before the positions after `computed` can be.
    #[must_use]
    pub fn missing_tiles(&self, key: &Key, computed: usize) -> Vec<usize> {
        self.missing_images(key, computed)
            .map(|index| match &self.images[index].content {
                ImageContent::Pixels(pixels) => pixels.tiles.max(1),
                ImageContent::Features(_) => 0,
            })
            .collect()
    }

    /// Images that must be encoded before the positions after `computed` can be.
    pub fn missing_images(&self, key: &Key, computed: usize) -> impl Iterator<Item = usize> {
        key.images()
            .into_iter()
            .enumerate()
            .filter(move |(index, at)| at.end > computed && self.features[*index].is_none())
            .map(|(index, _)| index)
    }

    /// Takes those of the missing images that `find` has; their pixels are of no more use.
    pub fn take_images(&mut self, find: impl Fn(&ImageInput) -> Option<ImageFeatures>) {
        for (image, place) in self.images.iter_mut().zip(&mut self.features) {
            if place.is_none()
                && let Some(features) = find(image)
            {
                image.content = ImageContent::Features(features.clone());
                *place = Some(features);
            }
        }
    }

    /// Chooses the next token from `logits`, tells the caller, and says how it goes on.
    pub fn advance(&mut self, logits: &[f32], eos: &[u32]) -> Next {
        let Some(token) = self.sampler.next(logits) else {
            return Next::Broken;
        };
        if eos.contains(&token) {
            return self.finish(FinishReason::Stop);
        }
        self.generated += 1;
        let text = self.detokenizer.push(token);
        let cut = self.stops.push(&text);
        let wants = self.request.logprobs;
        let event = TokenEvent {
            token,
            text: cut.text,
            logprob: wants.map(|_| logprob(logits, token)),
            top: wants.map_or_else(Vec::new, |count| top(logits, count)),
        };
        if self.request.streams {
            self.send(Event::Token(event));
        } else {
            self.kept.push(event);
        }
        if cut.stopped {
            self.send_finished(String::new(), FinishReason::Stop)
        } else if self.generated >= self.request.max_tokens {
            self.finish(FinishReason::Length)
        } else {
            Next::Continue(token)
        }
    }

    /// Tells the caller that it has a slot.
    pub fn start(&mut self, cached_tokens: usize, now: Instant) {
        if self.times.admitted.is_none() {
            self.times.admitted = Some(now);
            self.send(Event::Started { cached_tokens });
        }
    }

    /// Tells the caller that there will be no answer.
    pub fn fail(&self, failure: Failure) {
        self.send(Event::Failed(failure));
    }

    fn finish(&mut self, reason: FinishReason) -> Next {
        let rest = self.detokenizer.finish();
        let cut = self.stops.push(&rest);
        if cut.stopped {
            return self.send_finished(cut.text, FinishReason::Stop);
        }
        let text = cut.text + &self.stops.finish();
        self.send_finished(text, reason)
    }

    fn send_finished(&mut self, text: String, reason: FinishReason) -> Next {
        for event in std::mem::take(&mut self.kept) {
            self.send(Event::Token(event));
        }
        self.send(Event::Finished {
            text,
            reason,
            tokens: self.generated,
        });
        Next::Done(reason)
    }

    fn send(&self, event: Event) {
        let last = matches!(event, Event::Finished { .. } | Event::Failed(_));
        // A caller that has left is noticed before the next step.
        let _ = self.request.events.send(event);
        if last {
            self.request.ended.notify_one();
        }
    }
}
