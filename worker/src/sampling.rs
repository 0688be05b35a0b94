//! From logits to the next token: penalties, bias, temperature, top-k, top-p,
//! and the probabilities that a caller asks for. A draw depends on the seed and
//! the position alone, so that a sequence that is computed again goes on as before.

mod draw;

use std::collections::HashMap;

use crate::kernels::pointwise;
use draw::{Draw, Range, heavier};

/// Up to this temperature sampling is greedy: LLaVA's worker samples only above it.
const GREEDY_UP_TO: f32 = 1e-3;

/// How tokens are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Up to 0.001 is greedy; 1 is the model's own distribution.
    pub temperature: f32,
    /// Share of the probability that is sampled from, above 0 and at most 1.
    pub top_p: f32,
    /// Number of tokens that are sampled from; 0 is all.
    pub top_k: usize,
    /// Divides positive and multiplies negative logits of tokens in prompt or answer; 1 is none.
    pub repetition_penalty: f32,
    /// Taken from the logit of each token that the answer holds already.
    pub presence_penalty: f32,
    /// Taken from a logit once for each time the answer holds the token.
    pub frequency_penalty: f32,
    /// Added to logits, by token, before penalties.
    pub logit_bias: Vec<(u32, f32)>,
    /// Makes draws repeatable.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// Always the most probable token.
    #[must_use]
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            ..Self::default()
        }
    }

    fn penalises(&self) -> bool {
        self.repetition_penalty != 1.0
            || self.presence_penalty != 0.0
            || self.frequency_penalty != 0.0
    }

    fn changes_logits(&self) -> bool {
        self.penalises() || !self.logit_bias.is_empty()
    }
}

/// Chooses the tokens of one answer.
#[derive(Clone, Debug)]
pub struct Sampler {
    params: SamplingParams,
    /// How often the answer holds a token; 0 for one of the prompt only. Empty where
    /// nothing is penalised.
    counts: HashMap<u32, u32>,
    drawn: u64,
    draw: Draw,
}

/// A token with the logarithm of its probability under the model, before
/// temperature, penalties and bias.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The token.
    pub token: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

impl Sampler {
    /// A sampler for an answer to these prompt tokens.
    #[must_use]
    pub fn new(params: SamplingParams, prompt: impl IntoIterator<Item = u32>) -> Self {
        let counts = if params.repetition_penalty == 1.0 {
            HashMap::new()
        } else {
            prompt.into_iter().map(|token| (token, 0)).collect()
        };
        Self {
            params,
            counts,
            drawn: 0,
            draw: Draw::default(),
        }
    }

    /// Chooses the next token from `logits` `[vocab]`; `None` when no logit is
    /// a number, which a sound model never gives.
    pub fn next(&mut self, logits: &[f32]) -> Option<u32> {
        let token = if self.params.changes_logits() {
            let changed = self.changed(logits);
            self.choose(&changed)
        } else {
            self.choose(logits)
        }?;
        self.drawn += 1;
        if self.params.penalises() {
            *self.counts.entry(token).or_default() += 1;
        }
        Some(token)
    }

    fn changed(&self, logits: &[f32]) -> Vec<f32> {
        let params = &self.params;
        let mut changed = logits.to_vec();
        for &(token, bias) in &params.logit_bias {
            if let Some(logit) = changed.get_mut(token as usize) {
                *logit += bias;
            }
        }
        for (&token, &count) in &self.counts {
            let Some(logit) = changed.get_mut(token as usize) else {
                continue;
            };
            if *logit > 0.0 {
                *logit /= params.repetition_penalty;
            } else {
                *logit *= params.repetition_penalty;
            }
            if count > 0 {
                *logit -= params.presence_penalty + params.frequency_penalty * count as f32;
            }
        }
        changed
    }

    fn choose(&mut self, logits: &[f32]) -> Option<u32> {
        let best = argmax(logits)?;
        let params = &self.params;
        if params.temperature <= GREEDY_UP_TO || params.top_k == 1 {
            return Some(best);
        }
        let range = Range {
            temperature: params.temperature,
            top_k: params.top_k,
            top_p: params.top_p,
        };
        let at = uniform(params.seed, self.drawn);
        Some(self.draw.draw(logits, best, range, at))
    }
}

/// The logarithm of `token`'s probability.
#[must_use]
pub fn logprob(logits: &[f32], token: u32) -> f32 {
    logits
        .get(token as usize)
        .map_or(f32::NEG_INFINITY, |logit| logit - log_sum(logits))
}

/// The `count` most probable tokens, most probable first.
#[must_use]
pub fn top(logits: &[f32], count: usize) -> Vec<Candidate> {
    if count == 0 {
        return Vec::new();
    }
    let sum = log_sum(logits);
    let mut all: Vec<(f32, u32)> = logits
        .iter()
        .enumerate()
        .filter(|(_, logit)| !logit.is_nan())
        .map(|(token, &logit)| (logit, token as u32))
        .collect();
    if count < all.len() {
        all.select_nth_unstable_by(count - 1, heavier);
        all.truncate(count);
    }
    all.sort_unstable_by(heavier);
    all.into_iter()
        .map(|(logit, token)| Candidate {
            token,
            logprob: logit - sum,
        })
        .collect()
}

fn log_sum(logits: &[f32]) -> f32 {
    let top = pointwise::largest(logits);
    let mut room = [0f32; 256];
    let parts = logits.chunks(room.len()).map(|part| {
        let weights = &mut room[..part.len()];
        pointwise::weights(part, top, 1.0, weights);
        f64::from(pointwise::sum(weights))
    });
    top + parts.sum::<f64>().ln() as f32
}

/// Tokens that are looked at together.
const AT_ONCE: usize = 32;

/// The first of the most probable tokens.
fn argmax(logits: &[f32]) -> Option<u32> {
    let most = pointwise::largest(logits);
    let mut parts = logits.chunks(AT_ONCE);
    // Most have none: this compiles to a few instructions for all.
    let part = parts.position(|part| part.iter().fold(false, |any, x| any | (*x == most)))?;
    let first = logits
        .iter()
        .skip(part * AT_ONCE)
        .position(|x| *x == most)?;
    Some((part * AT_ONCE + first) as u32)
}

/// A number from 0 to 1, 1 excluded, that depends on nothing but its arguments (SplitMix64).
fn uniform(seed: u64, index: u64) -> f32 {
    let mut z = seed.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
}

#[cfg(test)]
mod tests;
