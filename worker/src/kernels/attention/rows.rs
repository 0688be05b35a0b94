//! Attention of a few query rows, each over what a head's cache holds. What is multiplied are
//! whole numbers of 16 bits all the way: [`super::words`].

use std::ops::Range;

use super::super::pointwise::{attention_weights, largest_size, split_in_words};
use super::super::{Instructions, PANEL, Shared};
use super::cache::{HeadCache, even};
use super::words::{Fine, LARGEST, Lane, WEIGHTS};

/// Most query rows that are attended together.
pub(super) const MOST_ROWS: usize = 12;

/// What a query row may see: positions `first..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sight {
    pub(crate) first: usize,
    pub(crate) end: usize,
}

/// What a row at `position` may see: itself and what came before it, at most
/// `window` positions.
pub(crate) fn sight(position: usize, window: Option<usize>) -> Sight {
    let end = position + 1;
    Sight {
        first: window.map_or(0, |window| end.saturating_sub(window)),
        end,
    }
}

/// Some query rows, and what each of them sees.
pub(super) struct Queries<'a, Head, See> {
    /// Row `r` begins at `r * stride`.
    pub(super) values: &'a [f32],
    pub(super) stride: usize,
    /// At most [`MOST_ROWS`].
    pub(super) rows: usize,
    /// The head of a row; all are of one kind.
    pub(super) head: Head,
    /// The positions of a row, none of them past what its head holds.
    pub(super) sight: See,
}

/// What attention works in.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Left factors in two parts.
    high: Vec<i16>,
    low: Vec<i16>,
    /// `[rows][positions]`, from the first panel that a row sees to the end of the last.
    scores: Vec<f32>,
    /// `[rows][panels of channels][32]`.
    sums: Vec<f32>,
    /// What a row's scores are to be multiplied with, and then what its sums are.
    scales: [f32; MOST_ROWS],
}

impl<'a, Head, See> Queries<'a, Head, See>
where
    Head: Fn(usize) -> &'a HeadCache<'a>,
    See: Fn(usize) -> Sight,
{
    /// Attends with scores times `scale`, writing `[rows, channels]`. A row's result depends on
    /// that row only, to the last bit.
    pub(super) fn attend(&self, scale: f32, out: &mut [f32], scratch: &mut Scratch) {
        let head = (self.head)(0);
        let (channels, positions) = (head.channels, head.positions);
        assert!((1..=MOST_ROWS).contains(&self.rows), "a block of queries");
        assert_eq!(out.len(), self.rows * channels, "the result fills its rows");
        let seen = || (0..self.rows).map(&self.sight);
        let first = seen().map(|sight| sight.first).min().unwrap_or(0) / PANEL * PANEL;
        let end = seen().map(|sight| sight.end).max().unwrap_or(0);
        assert!(
            end <= positions && first < end,
            "queries see stored positions"
        );
        let instructions = Instructions::detect();
        self.score(scale, &(first..end), instructions, scratch);
        self.weigh(&(first..end), scratch);
        self.sum(&(first..end), instructions, scratch);
        let width = scratch.sums.len() / self.rows;
        let rows = out
            .chunks_exact_mut(channels)
            .zip(scratch.sums.chunks_exact(width));
        for ((out, sums), scale) in rows.zip(scratch.scales) {
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = sum * scale;
            }
        }
    }

    /// The products of queries and keys.
    fn score(
        &self,
        scale: f32,
        seen: &Range<usize>,
        instructions: Instructions,
        scratch: &mut Scratch,
    ) {
        let channels = (self.head)(0).channels;
        let (inner, width) = (even(channels), seen.len().next_multiple_of(PANEL));
        let (largest_part, fine) = Fine::of_inner(inner);
        zeros(&mut scratch.high, self.rows * inner);
        zeros(&mut scratch.low, self.rows * inner);
        for r in 0..self.rows {
            let query = &self.values[r * self.stride..][..channels];
            let high = &mut scratch.high[r * inner..][..channels];
            let low = &mut scratch.low[r * inner..][..channels];
            let largest = largest_size(query);
            split_in_words(query, largest_part / largest, fine.get(), high, low);
            scratch.scales[r] = scale * largest / largest_part;
        }
        zeros(&mut scratch.scores, self.rows * width);
        let scores = Shared(scratch.scores.as_mut_ptr());
        let mut lanes = Vec::with_capacity(self.rows * width / PANEL);
        for at in seen.clone().step_by(PANEL) {
            for r in 0..self.rows {
                let keys = &(self.head)(r).keys[at * inner..][..PANEL * inner];
                lanes.push(Lane {
                    high: scratch.high[r * inner..].as_ptr(),
                    low: scratch.low[r * inner..].as_ptr(),
                    panel: keys.as_ptr(),
                    // SAFETY: the row has a place for each position of the panel.
                    out: unsafe { scores.at(r * width + at - seen.start) },
                });
            }
        }
        // SAFETY: each lane has a query, a whole panel, and scores of its own.
        unsafe { Lane::run(&lanes, inner / 2, fine, instructions) };
    }

    /// Turns scores into what the numbers of the values are multiplied with.
    fn weigh(&self, seen: &Range<usize>, scratch: &mut Scratch) {
        let width = seen.len().next_multiple_of(PANEL);
        zeros(&mut scratch.high, self.rows * width);
        zeros(&mut scratch.low, self.rows * width);
        let scores = scratch.scores.chunks_exact_mut(width);
        for (r, (scores, scale)) in scores.zip(&mut scratch.scales).enumerate() {
            let (head, sight) = ((self.head)(r), (self.sight)(r));
            let keys = &head.key_scales[seen.start..];
            let values = &head.value_scales[seen.start..];
            let of_row = sight.first - seen.start..sight.end - seen.start;
            let [all, weighed] = attention_weights(scores, keys, values, &of_row, *scale);
            let high = &mut scratch.high[r * width..][..width];
            let low = &mut scratch.low[r * width..][..width];
            let fine = Fine::OF_WEIGHTS.get();
            split_in_words(scores, LARGEST / weighed, fine, high, low);
            *scale = weighed / LARGEST / all;
        }
    }

    /// The products of weights and values.
    fn sum(&self, seen: &Range<usize>, instructions: Instructions, scratch: &mut Scratch) {
        let (channels, positions) = ((self.head)(0).channels, (self.head)(0).positions);
        let panels = channels.div_ceil(PANEL);
        let width = seen.len().next_multiple_of(PANEL);
        zeros(&mut scratch.sums, self.rows * panels * PANEL);
        let sums = Shared(scratch.sums.as_mut_ptr());
        let mut lanes = Vec::with_capacity(self.rows * panels);
        // Cut at the same positions whatever else is seen, so that a row's sums are the same.
        let cuts = (seen.start / WEIGHTS * WEIGHTS..seen.end).step_by(WEIGHTS);
        for cut in cuts {
            let part = cut.max(seen.start)..(cut + WEIGHTS).min(even(seen.end));
            lanes.clear();
            for panel in 0..panels {
                for r in 0..self.rows {
                    let weights = r * width + part.start - seen.start;
                    let values = (panel * positions + part.start) * PANEL;
                    let values = &(self.head)(r).values[values..][..part.len() * PANEL];
                    lanes.push(Lane {
                        high: scratch.high[weights..][..part.len()].as_ptr(),
                        low: scratch.low[weights..][..part.len()].as_ptr(),
                        panel: values.as_ptr(),
                        // SAFETY: the row has a place for each channel of the panel.
                        out: unsafe { sums.at((r * panels + panel) * PANEL) },
                    });
                }
            }
            // SAFETY: each lane has weights, the values of as many positions, and sums of its own.
            unsafe { Lane::run(&lanes, part.len() / 2, Fine::OF_WEIGHTS, instructions) };
        }
    }
}

/// Makes a buffer `count` zeros.
fn zeros<T: Copy + Default>(buffer: &mut Vec<T>, count: usize) {
    buffer.clear();
    buffer.resize(count, T::default());
}

#[cfg(test)]
mod tests {
    use super::super::cache::Room;
    use super::*;

    /// What `queries`, the last of which stands at the last position, attend to in a head of
    /// `keys` and `values`, one of each position.
    fn attended(
        queries: &[Vec<f32>],
        keys: &[Vec<f32>],
        values: &[Vec<f32>],
        window: Option<usize>,
    ) -> Vec<f32> {
        let channels = queries[0].len();
        let room = Room::new(keys.len(), channels);
        // What was there before is never seen.
        let mut numbers = vec![i16::MIN; room.numbers()];
        let mut scales = vec![f32::NAN; room.scales()];
        let mut head = HeadCache::of(&mut numbers, &mut scales, room);
        for (position, (key, value)) in keys.iter().zip(values).enumerate() {
            head.set(position, key, value, &mut Vec::new());
        }
        let mut out = vec![0.0; queries.len() * channels];
        let first = keys.len() - queries.len();
        let queries = Queries {
            values: &queries.concat(),
            stride: channels,
            rows: queries.len(),
            head: |_| &head,
            sight: |r| sight(first + r, window),
        };
        queries.attend(1.0, &mut out, &mut Scratch::default());
        out
    }

    /// `count` rows of numbers that differ by `spread` in size.
    fn rows(count: usize, channels: usize, spread: f32, seed: usize) -> Vec<Vec<f32>> {
        let number = |n: usize| ((n * 7 + seed) as f32 * 0.713).sin() * spread.powi((n % 3) as i32);
        (0..count)
            .map(|row| {
                (0..channels)
                    .map(|at| number(row * channels + at))
                    .collect()
            })
            .collect()
    }

    #[test]
    fn attention_is_off_by_less_than_a_ten_thousandth_of_the_largest_value() {
        for (count, channels, spread) in [
            (1, 8, 1.0),
            (33, 40, 1.0),
            (90, 64, 4.0),
            (65, 32, 0.01),
            (40, 7, 1.0),
            (1200, 128, 0.3),
        ] {
            let (keys, values) = (
                rows(count, channels, spread, 1),
                rows(count, channels, spread, 2),
            );
            let queries = rows(1, channels, 0.3, 3);
            let dot = |key: &Vec<f32>| -> f64 {
                key.iter()
                    .zip(&queries[0])
                    .map(|(a, b)| f64::from(*a) * f64::from(*b))
                    .sum()
            };
            let powers: Vec<f64> = keys.iter().map(|key| dot(key).exp()).collect();
            let all: f64 = powers.iter().sum();
            let largest = values
                .iter()
                .flatten()
                .fold(0f32, |most, x| most.max(x.abs()));
            let out = attended(&queries, &keys, &values, None);
            for (at, found) in out.into_iter().enumerate() {
                let parts = powers.iter().zip(&values);
                let wanted: f64 = parts
                    .map(|(power, value)| power / all * f64::from(value[at]))
                    .sum();
                let off = (f64::from(found) - wanted).abs();
                assert!(
                    off < 1e-4 * f64::from(largest),
                    "{count}x{channels}: {found} {wanted}"
                );
            }
        }
    }

    #[test]
    fn whole_numbers_give_back_zeros_exactly_and_what_is_no_number_as_none() {
        let zeros = vec![vec![0.0; 8]; 3];
        let ones = [vec![1.0; 8]];
        assert_eq!(attended(&ones, &zeros, &zeros, None), [0.0; 8]);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut values = zeros.clone();
            values[1][2] = bad;
            values[1][5] = 1.0;
            let out = attended(&ones, &zeros, &values, None);
            assert!(out[2].is_nan(), "{bad}: {out:?}");
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_among_others() {
        for (count, channels, window) in [(1100, 32, None), (1100, 40, Some(700)), (70, 7, Some(9))]
        {
            let (keys, values) = (rows(count, channels, 2.0, 1), rows(count, channels, 2.0, 2));
            let queries = rows(MOST_ROWS, channels, 0.3, 3);
            let together = attended(&queries, &keys, &values, window);
            for (r, together) in together.chunks(channels).enumerate() {
                let before = count - MOST_ROWS + r + 1;
                let query = &queries[r..=r];
                let alone = attended(query, &keys[..before], &values[..before], window);
                assert_eq!(alone, together, "row {r} of {count}x{channels}");
            }
        }
    }
}
