//! One conversation with a model in this process, for the terminal: pictures
//! and messages in, text out as it comes. What the next prompt shares with the
//! last one is not computed again.

use crate::config::ModelConfig;
use crate::engine::detokenizer::Detokenizer;
use crate::engine::stop::StopTexts;
use crate::engine::{Decode, Decoder};
use crate::image::{ImageProcessor, Limits, Picture, ProcessorConfig, decode, read_file};
use crate::input::{ImageFeatures, Piece, positions, slice};
use crate::kv::KvCache;
use crate::model::{Model, Part};
use crate::prompt::{self, Message, PromptRenderer};
use crate::sampling::{Sampler, SamplingParams};
use anyhow::{Context, bail};
use std::path::Path;
use std::sync::Arc;

/// Prompt positions that are computed at once: the working memory grows with them.
const CHUNK: usize = 512;

/// A model, its prompts and what it has read so far.
pub struct Speaker {
    model: Model,
    renderer: PromptRenderer,
    processor: ImageProcessor,
    pictures: Vec<Picture>,
    features: Vec<ImageFeatures>,
    kv: KvCache,
    held: Vec<Position>,
    /// Tokens that end an answer.
    ends: Vec<u32>,
}

/// One position of a sequence, for comparing two prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    Token(u32),
    Image { index: usize, row: usize },
}

/// How an answer is made.
#[derive(Debug, Clone)]
pub struct AnswerOptions {
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Longest answer in tokens.
    pub max_tokens: usize,
}

impl Speaker {
    /// A speaker for the loaded checkpoint in `dir`. `template` names a
    /// conversation template to use instead of the checkpoint's own.
    ///
    /// # Errors
    /// The tokenizer, the template or the image processor cannot be used.
    pub fn new(model: Model, dir: &Path, template: Option<&str>) -> anyhow::Result<Self> {
        let config: &ModelConfig = model.config();
        let renderer = PromptRenderer::from_checkpoint(dir, config, template)?;
        let processor = ImageProcessor::new(ProcessorConfig::read(dir, config)?);
        let kv = model.new_kv(1, model.info().context)?;
        let mut ends = model.info().eos.clone();
        ends.extend(renderer.end_tokens());
        Ok(Self {
            model,
            renderer,
            processor,
            pictures: Vec::new(),
            features: Vec::new(),
            kv,
            held: Vec::new(),
            ends,
        })
    }

    /// Adds the picture in the file at `path` to the conversation.
    ///
    /// # Errors
    /// The file cannot be read, is no picture, or is too large a one.
    pub fn show(&mut self, path: &Path) -> anyhow::Result<()> {
        let name = path.display().to_string();
        let limits = Limits::default();
        let bytes = read_file(path, &limits).with_context(|| format!("failed to read {name}"))?;
        self.pictures.push(decode(&name, &bytes, &limits)?);
        // Some checkpoints cut a lone picture differently from one of several.
        self.features.clear();
        self.forget();
        Ok(())
    }

    /// Forgets the pictures and everything that has been read.
    pub fn clear(&mut self) {
        self.pictures.clear();
        self.features.clear();
        self.forget();
    }

    /// Answers the last of `messages`; `out` is given the text as it comes.
    /// Gives the whole answer.
    ///
    /// # Errors
    /// The messages do not suit the template, the prompt does not fit the
    /// context, the model failed, or `out` did.
    pub fn answer(
        &mut self,
        messages: &[Message],
        options: &AnswerOptions,
        out: &mut dyn FnMut(&str) -> std::io::Result<()>,
    ) -> anyhow::Result<String> {
        let prompt = self.renderer.render(messages)?;
        let pieces = self.pieces(&prompt)?;
        let length = positions(&pieces);
        let context = self.model.info().context;
        if length >= context {
            bail!("the prompt takes {length} tokens, but the context has {context}");
        }
        let mut logits = self.read(&pieces)?;
        let text_tokens = pieces.iter().flat_map(|piece| match piece {
            Piece::Tokens(ids) => ids.clone(),
            Piece::Image { .. } => Vec::new(),
        });
        let mut sampler = Sampler::new(options.sampling.clone(), text_tokens);
        let mut detokenizer = Detokenizer::new(self.decoder());
        let mut stop = StopTexts::new(prompt.stop);
        let mut answer = String::new();
        let mut give = |text: &str| -> std::io::Result<()> {
            answer.push_str(text);
            if text.is_empty() { Ok(()) } else { out(text) }
        };
        let most = options.max_tokens.min(context - length);
        for count in 1..=most {
            let token = sampler.next(&logits).context("the model gave no numbers")?;
            if self.ends.contains(&token) {
                break;
            }
            let cut = stop.push(&detokenizer.push(token));
            give(&cut.text)?;
            if cut.stopped {
                return Ok(answer);
            }
            if count < most {
                logits = self.step(Part::token(0, self.held.len(), token))?;
                self.held.push(Position::Token(token));
            }
        }
        let cut = stop.push(&detokenizer.finish());
        give(&cut.text)?;
        if !cut.stopped {
            give(&stop.finish())?;
        }
        Ok(answer)
    }

    /// Reads what the cache does not hold yet; gives the logits after it.
    fn read(&mut self, pieces: &[Piece]) -> anyhow::Result<Vec<f32>> {
        let wanted = flatten(pieces);
        let shared = self
            .held
            .iter()
            .zip(&wanted)
            .take_while(|(a, b)| a == b)
            .count();
        // At least one position is run, for its logits.
        let shared = shared.min(wanted.len().saturating_sub(1));
        self.kv.truncate(0, shared);
        self.held.truncate(shared);
        let mut logits = Vec::new();
        for start in (shared..wanted.len()).step_by(CHUNK) {
            let input = slice(pieces, start..start + CHUNK);
            logits = self.step(Part::prompt(0, start, input))?;
            self.held
                .extend(&wanted[start..(start + CHUNK).min(wanted.len())]);
        }
        Ok(logits)
    }

    fn step(&mut self, part: Part) -> anyhow::Result<Vec<f32>> {
        let logits = self.model.forward(&mut self.kv, &[part])?;
        Ok(logits.row(0).context("the part asked for logits")?.to_vec())
    }

    fn pieces(&mut self, prompt: &prompt::Prompt) -> anyhow::Result<Vec<Piece>> {
        if self.features.is_empty() && !self.pictures.is_empty() {
            let count = self.pictures.len();
            let pixels: Vec<_> = self
                .pictures
                .iter()
                .map(|picture| self.processor.process(picture, count))
                .collect();
            self.features = self
                .model
                .encode_images(&pixels.iter().collect::<Vec<_>>())?;
        }
        prompt
            .pieces
            .iter()
            .map(|piece| match piece {
                prompt::Piece::Text(ids) => Ok(Piece::Tokens(ids.clone())),
                prompt::Piece::Image(index) => {
                    let features = self.features.get(*index);
                    let features = features
                        .with_context(|| format!("the prompt has no picture {}", index + 1))?;
                    Ok(Piece::image(features.clone()))
                }
            })
            .collect()
    }

    fn decoder(&self) -> Decode {
        let tokenizer = self.renderer.tokenizer().inner().clone();
        Arc::new(Decoder::new(self.model.info().vocab, move |ids| {
            tokenizer.decode(ids, true).unwrap_or_default()
        }))
    }

    fn forget(&mut self) {
        self.held.clear();
        self.kv.truncate(0, 0);
    }
}

fn flatten(pieces: &[Piece]) -> Vec<Position> {
    let mut images = 0;
    let mut all = Vec::with_capacity(positions(pieces));
    for piece in pieces {
        match piece {
            Piece::Tokens(ids) => all.extend(ids.iter().map(|id| Position::Token(*id))),
            Piece::Image { rows, .. } => {
                all.extend(
                    rows.clone()
                        .map(|row| Position::Image { index: images, row }),
                );
                images += 1;
            }
        }
    }
    all
}
