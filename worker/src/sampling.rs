//! From logits to the next token: penalties, bias, temperature, top-k, top-p,
//! and the probabilities that a caller asks for. A draw depends on the seed and
//! the position alone, so that a sequence that is computed again goes on as before.

mod draw;

use std::collections::HashMap;

use crate::kernels::pointwise;
use draw::{Draw, Range, heavier};

/// Below this temperature sampling is greedy, as in LLaVA's worker.
const GREEDY_BELOW: f32 = 1e-3;

/// How tokens are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy; 1 the model's own distribution.
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
    /// Added to logits, by token.
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
        for &(token, bias) in &params.logit_bias {
            if let Some(logit) = changed.get_mut(token as usize) {
                *logit += bias;
            }
        }
        changed
    }

    fn choose(&mut self, logits: &[f32]) -> Option<u32> {
        let best = argmax(logits)?;
        let params = &self.params;
        if params.temperature < GREEDY_BELOW || params.top_k == 1 {
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

/// The first of the most probable tokens.
fn argmax(logits: &[f32]) -> Option<u32> {
    let most = pointwise::largest(logits);
    let first = logits.iter().position(|logit| *logit == most);
    first.map(|token| token as u32)
}

/// A number from 0 to 1, 1 excluded, that depends on nothing but its arguments (SplitMix64).
fn uniform(seed: u64, index: u64) -> f32 {
    let mut z = seed.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn draws(params: &SamplingParams, logits: &[f32], count: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(params.clone(), []);
        (0..count).map(|_| sampler.next(logits).unwrap()).collect()
    }

    #[test]
    fn greedy_takes_the_first_of_equals() {
        let logits = [0.0, 3.0, f32::NAN, 3.0];
        assert_eq!(draws(&SamplingParams::greedy(), &logits, 3), [1, 1, 1]);
        assert_eq!(
            Sampler::new(SamplingParams::greedy(), []).next(&[f32::NAN]),
            None
        );
    }

    #[test]
    fn draws_follow_the_distribution() {
        let logits = [0.7f32.ln(), 0.2f32.ln(), 0.1f32.ln()];
        let drawn = draws(&SamplingParams::default(), &logits, 20_000);
        for (token, expected) in [(0, 0.7), (1, 0.2), (2, 0.1)] {
            let share = drawn.iter().filter(|&&t| t == token).count() as f64 / 20_000.0;
            assert!((share - expected).abs() < 0.015, "token {token}: {share}");
        }
    }

    #[test]
    fn top_p_and_top_k_cut_the_tail() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.2f32.ln()];
        let p = SamplingParams {
            top_p: 0.7,
            ..SamplingParams::default()
        };
        assert!(draws(&p, &logits, 500).iter().all(|&token| token < 2));
        let k = SamplingParams {
            top_k: 1,
            ..SamplingParams::default()
        };
        assert!(draws(&k, &logits, 50).iter().all(|&token| token == 0));
    }

    #[test]
    fn penalties_and_bias_move_the_choice() {
        let logits = [1.0, 0.9, -5.0];
        let once = SamplingParams {
            presence_penalty: 0.5,
            ..SamplingParams::greedy()
        };
        assert_eq!(draws(&once, &logits, 3), [0, 1, 0]);
        let bias = SamplingParams {
            logit_bias: vec![(2, 100.0)],
            ..SamplingParams::greedy()
        };
        assert_eq!(draws(&bias, &logits, 1), [2]);
        let mut repeated = Sampler::new(
            SamplingParams {
                repetition_penalty: 2.0,
                ..SamplingParams::greedy()
            },
            [0],
        );
        assert_eq!(repeated.next(&logits), Some(1));
    }

    #[test]
    fn probabilities_are_those_of_the_softmax() {
        let logits = [1.0, 2.0, 3.0];
        let total: f32 = (0..3).map(|token| logprob(&logits, token).exp()).sum();
        assert!((total - 1.0).abs() < 1e-6);
        let best = top(&logits, 2);
        assert_eq!(best[0].token, 2);
        assert!((best[1].logprob - logprob(&logits, 1)).abs() < 1e-6);
    }

    proptest! {
        #[test]
        fn a_seed_repeats_its_draws(seed: u64, top_p in 0.1f32..1.0, logits in prop::collection::vec(-4f32..4.0, 2..40)) {
            let params = SamplingParams { seed, top_p, ..SamplingParams::default() };
            prop_assert_eq!(draws(&params, &logits, 20), draws(&params, &logits, 20));
        }
    }
}
