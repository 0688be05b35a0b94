//! One draw from a distribution over a whole vocabulary, without sorting it.
//! Candidates are counted in buckets by weight; only the bucket in which the
//! probability is used up, and the one in which the draw falls, are put in order.

use crate::kernels::pointwise;

/// Keeps sign, exponent and the first four bits of the fraction: sixteen buckets an octave.
const SHIFT: u32 = f32::MANTISSA_DIGITS - 1 - 4;

/// Weights are at most 1.
const BUCKETS: usize = (1f32.to_bits() >> SHIFT) as usize + 1;

/// Sums of neighbours go to different places, so that one need not wait for the other.
const WAYS: usize = 4;

/// Weights that are added up together when tokens are walked in their own order.
const BLOCK: usize = 256;

/// What may be drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    /// Divides the logits.
    pub(super) temperature: f32,
    /// Tokens; 0 is all.
    pub(super) top_k: usize,
    /// Share of the probability.
    pub(super) top_p: f32,
}

/// A weight and its token.
type Weighed = (f32, u32);

/// Room to draw in.
#[derive(Clone, Debug, Default)]
pub(super) struct Draw {
    /// By token; 1 is the heaviest.
    weights: Vec<f32>,
    /// `[buckets][ways]`.
    sums: Vec<[f64; WAYS]>,
}

/// The heavier first, of equals the one with the smaller number.
pub(super) fn heavier(a: &Weighed, b: &Weighed) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

impl Draw {
    /// The token at the share `at`, from 0 to 1, of what may be drawn: by
    /// weight where that is cut to a share of the probability, else by token.
    /// `best` is the most probable token.
    pub(super) fn draw(&mut self, logits: &[f32], best: u32, range: Range, at: f32) -> u32 {
        let most = logits[best as usize];
        self.weights.resize(logits.len(), 0.0);
        pointwise::weights(logits, most, 1.0 / range.temperature, &mut self.weights);
        let drawn = if range.top_k > 0 && range.top_k < logits.len() {
            self.among_few(range, at)
        } else if range.top_p < 1.0 {
            self.by_weight(f64::from(range.top_p), f64::from(at))
        } else {
            self.by_token(f64::from(at))
        };
        drawn.unwrap_or(best)
    }

    /// Among the `top_k` heaviest.
    fn among_few(&mut self, range: Range, at: f32) -> Option<u32> {
        self.fill(|_| 1.0);
        let mut count = 0.0;
        let least = self.heaviest(|bucket| {
            count += bucket;
            count >= range.top_k as f64
        });
        let mut few = self.collect(least..BUCKETS);
        few.sort_unstable_by(heavier);
        few.truncate(range.top_k);
        let total: f64 = few.iter().map(|(weight, _)| f64::from(*weight)).sum();
        let mut mass = total;
        if range.top_p < 1.0 {
            mass = keep(&mut few, f64::from(range.top_p) * total);
        } else {
            few.sort_unstable_by_key(|(_, token)| *token);
        }
        walk(&few, f64::from(at) * mass)
    }

    /// Among the fewest of all, heaviest first, that weigh the share `top_p` together.
    fn by_weight(&mut self, top_p: f64, at: f64) -> Option<u32> {
        self.fill(f64::from);
        let total: f64 = self.sums.iter().flatten().sum();
        let wanted = top_p * total;
        let mut above = 0.0;
        let edge = self.heaviest(|bucket| {
            let enough = above + bucket >= wanted;
            above += if enough { 0.0 } else { bucket };
            enough
        });
        let mut last = self.collect(edge..edge + 1);
        last.sort_unstable_by(heavier);
        let mass = above + keep(&mut last, wanted - above);
        let target = at * mass;
        if target >= above {
            return walk(&last, target - above);
        }
        let mut before = 0.0;
        let bucket = self.heaviest(|bucket| {
            let here = before + bucket > target;
            before += if here { 0.0 } else { bucket };
            here
        });
        let mut found = self.collect(bucket..bucket + 1);
        found.sort_unstable_by(heavier);
        walk(&found, target - before)
    }

    /// Among all, in the order of their numbers.
    fn by_token(&self, at: f64) -> Option<u32> {
        let blocks = self.weights.chunks(BLOCK);
        let sums: Vec<f64> = blocks
            .map(|block| f64::from(pointwise::sum(block)))
            .collect();
        let mut left = at * sums.iter().sum::<f64>();
        let mut first = 0;
        for sum in &sums {
            if left < *sum {
                break;
            }
            left -= sum;
            first += BLOCK;
        }
        let first = first.min(self.weights.len());
        self.weights[first..]
            .iter()
            .position(|weight| {
                left -= f64::from(*weight);
                left < 0.0
            })
            .map(|at| (first + at) as u32)
    }

    /// Sums `term` of the weights of each bucket.
    fn fill(&mut self, term: impl Fn(f32) -> f64) {
        self.sums.clear();
        self.sums.resize(BUCKETS, [0.0; WAYS]);
        for weights in self.weights.chunks(WAYS) {
            for (way, weight) in weights.iter().enumerate() {
                self.sums[bucket(*weight)][way] += term(*weight);
            }
        }
    }

    /// The first bucket, heaviest first, at whose sum `enough` says so; else the last one.
    fn heaviest(&self, enough: impl FnMut(f64) -> bool) -> usize {
        let sums = self.sums.iter().map(|ways| ways.iter().sum());
        let found = sums.rev().position(enough);
        found.map_or(0, |from_above| BUCKETS - 1 - from_above)
    }

    /// What lies in these buckets.
    fn collect(&self, buckets: std::ops::Range<usize>) -> Vec<Weighed> {
        let least = f32::from_bits((buckets.start as u32) << SHIFT);
        let end = f32::from_bits((buckets.end as u32) << SHIFT);
        let within = |weight: f32| (weight >= least) & (weight < end);
        let mut found = Vec::new();
        for (at, weights) in self.weights.chunks(32).enumerate() {
            // Most have none: this compiles to a few instructions for all.
            if !weights.iter().fold(false, |any, w| any | within(*w)) {
                continue;
            }
            for (token, &weight) in (at as u32 * 32..).zip(weights) {
                if within(weight) {
                    found.push((weight, token));
                }
            }
        }
        found
    }
}

fn bucket(weight: f32) -> usize {
    ((weight.to_bits() >> SHIFT) as usize).min(BUCKETS - 1)
}

/// Keeps the first of `sorted` that weigh at least `wanted` together; gives their weight.
fn keep(sorted: &mut Vec<Weighed>, wanted: f64) -> f64 {
    let mut mass = 0.0;
    let enough = sorted.iter().position(|(weight, _)| {
        mass += f64::from(*weight);
        mass >= wanted
    });
    sorted.truncate(enough.map_or(sorted.len(), |last| last + 1));
    mass
}

/// The token in which `target` of the weight falls.
fn walk(weighed: &[Weighed], target: f64) -> Option<u32> {
    let mut left = target;
    let found = weighed.iter().find(|(weight, _)| {
        left -= f64::from(*weight);
        left < 0.0
    });
    // Sums in another order may differ in their last digits.
    found.or(weighed.last()).map(|(_, token)| *token)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What may be drawn, in its order, and each one's share, by definition.
    fn written_out(logits: &[f32], range: Range) -> Vec<(f64, u32)> {
        let numbers = logits.iter().zip(0u32..).filter(|(x, _)| !x.is_nan());
        let mut all: Vec<(f64, u32)> = numbers
            .map(|(x, token)| (f64::from(x / range.temperature), token))
            .collect();
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        if range.top_k > 0 {
            all.truncate(range.top_k);
        }
        let most = all[0].0;
        for (x, _) in &mut all {
            *x = (*x - most).exp();
        }
        let total: f64 = all.iter().map(|(weight, _)| weight).sum();
        let mut mass = 0.0;
        if range.top_p < 1.0 {
            let fewest = all.iter().position(|(weight, _)| {
                mass += weight;
                mass >= f64::from(range.top_p) * total
            });
            all.truncate(fewest.map_or(all.len(), |last| last + 1));
        } else {
            all.sort_by_key(|(_, token)| *token);
        }
        let mass: f64 = all.iter().map(|(weight, _)| weight).sum();
        all.into_iter()
            .map(|(w, token)| (w / mass, token))
            .collect()
    }

    proptest! {
        #[test]
        fn a_draw_falls_where_the_written_out_distribution_puts_it(
            flat in prop::collection::vec(-6f32..6.0, 1..700),
            steepness in prop::sample::select(vec![0.0f32, 0.2, 1.0, 20.0]),
            temperature in 0.2f32..2.0,
            top_p in prop::sample::select(vec![0.05f32, 0.5, 0.9, 0.95, 0.999, 1.0]),
            top_k in prop::sample::select(vec![0usize, 2, 40]),
            at in 0f32..1.0,
        ) {
            // Rounded, so that there are equals; minus 0 is one of them.
            let logits: Vec<f32> = flat.iter().map(|x| (x * steepness * 8.0).round() / 8.0 + 0.0).collect();
            let best = logits.iter().zip(0u32..).fold((f32::MIN, 0), |best, (x, token)| {
                if *x > best.0 { (*x, token) } else { best }
            });
            let range = Range { temperature, top_k, top_p };
            let drawn = Draw::default().draw(&logits, best.1, range, at);
            let mut before = 0.0;
            let place = written_out(&logits, range).into_iter().find_map(|(share, token)| {
                let here = before..before + share;
                before += share;
                (token == drawn).then_some(here)
            });
            // The last digits may decide whether one more equal is in.
            let place = place.unwrap_or(0.999..1.0);
            let (least, most) = (place.start - 2e-3, place.end + 2e-3);
            prop_assert!((least..most).contains(&f64::from(at)), "{drawn} at {place:?}, drawn at {at}");
        }
    }

    #[test]
    fn a_flat_vocabulary_is_drawn_evenly() {
        let logits: Vec<f32> = (0..32_000).map(|i| (i as f32 * 0.7).sin() * 0.1).collect();
        let range = Range {
            temperature: 1.0,
            top_k: 0,
            top_p: 0.95,
        };
        let mut draw = Draw::default();
        let best =
            (0..32_000u32).max_by(|a, b| logits[*a as usize].total_cmp(&logits[*b as usize]));
        let mut seen = std::collections::HashSet::new();
        for n in 0..2000 {
            seen.insert(draw.draw(&logits, best.unwrap(), range, n as f32 / 2000.0));
        }
        assert!(seen.len() > 1990, "{}", seen.len());
    }
}
