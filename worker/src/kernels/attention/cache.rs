//! Keys and values of one head, in the panels that the products read, and the
//! attention of a few query rows over them.

use super::super::pages::give_back;
use super::super::pointwise::{attention_weights, largest_size, round_to_words, split_in_words};
use super::super::{Instructions, PANEL};
use super::words::{Fine, LARGEST, Lane, WEIGHTS};

/// Keys and values of one head: keys as panels of 32 positions
/// `[positions / 32][channels / 2][32][2]`, values as panels of 32 channels
/// `[channels / 32][positions / 2][32][2]`: what is added up stands in pairs. Each position's key, and each value, is kept in whole
/// numbers of 16 bits with one scale, so that its largest number is the largest of these. That is
/// read in half the time of f32, and is off by a 65,534th of the largest at most, where half
/// precision is off by up to a 4,096th of every number.
#[derive(Debug)]
pub(crate) struct HeadCache<'a> {
    keys: &'a mut [i16],
    values: &'a mut [i16],
    /// By position.
    key_scales: &'a mut [f32],
    value_scales: &'a mut [f32],
    positions: usize,
    channels: usize,
}

/// Room that heads of one kind take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    positions: usize,
    channels: usize,
}

impl Room {
    /// For `positions` positions of `channels` channels.
    pub(super) fn new(positions: usize, channels: usize) -> Self {
        Self {
            positions: positions.next_multiple_of(PANEL),
            channels,
        }
    }

    /// Whole numbers that one head takes.
    pub(super) fn numbers(self) -> usize {
        self.positions * (even(self.channels) + self.channels.next_multiple_of(PANEL))
    }

    /// Scales that one head takes.
    pub(super) fn scales(self) -> usize {
        2 * self.positions
    }
}

/// What a query row may see: positions `first..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sight {
    pub(crate) first: usize,
    pub(crate) end: usize,
}

/// Some query rows: row `r` begins at `values[r * stride]`.
#[derive(Clone, Copy)]
pub(super) struct Queries<'a> {
    pub(super) values: &'a [f32],
    pub(super) stride: usize,
    /// At most [`MOST_ROWS`].
    pub(super) rows: usize,
}

impl<'a> HeadCache<'a> {
    /// A head in `numbers` and `scales`, of which there are as many as `room` says.
    pub(super) fn of(numbers: &'a mut [i16], scales: &'a mut [f32], room: Room) -> Self {
        assert_eq!(
            (numbers.len(), scales.len()),
            (room.numbers(), room.scales()),
            "a head fills its memory"
        );
        let (keys, values) = numbers.split_at_mut(room.positions * even(room.channels));
        let (key_scales, value_scales) = scales.split_at_mut(room.positions);
        Self {
            keys,
            values,
            key_scales,
            value_scales,
            positions: room.positions,
            channels: room.channels,
        }
    }

    /// Bytes that one position of one head takes.
    pub(crate) fn bytes_per_position(channels: usize) -> usize {
        let numbers = even(channels) + channels.next_multiple_of(PANEL);
        numbers * size_of::<i16>() + 2 * size_of::<f32>()
    }

    /// Stores the key and value of `position`. `room` is any.
    pub(crate) fn set(&mut self, position: usize, key: &[f32], value: &[f32], room: &mut Vec<i16>) {
        let inner = even(self.channels);
        room.clear();
        room.resize(inner, 0);
        self.key_scales[position] = round_to_words(key, room);
        let (panel, column) = (position / PANEL, position % PANEL);
        let keys = &mut self.keys[panel * PANEL * inner..][..PANEL * inner];
        let pairs = room.as_chunks::<2>().0;
        for (keys, pair) in keys
            .as_chunks_mut::<{ 2 * PANEL }>()
            .0
            .iter_mut()
            .zip(pairs)
        {
            [keys[2 * column], keys[2 * column + 1]] = *pair;
        }
        self.value_scales[position] = round_to_words(value, room);
        for (panel, part) in room[..self.channels].chunks(PANEL).enumerate() {
            let at = (panel * self.positions + position / 2 * 2) * PANEL + position % 2;
            for (to, x) in self.values[at..].iter_mut().step_by(2).zip(part) {
                *to = *x;
            }
        }
    }

    /// Copies the first `count` positions from `other`.
    pub(super) fn copy_prefix(&mut self, other: &HeadCache<'_>, count: usize) {
        self.key_scales[..count].copy_from_slice(&other.key_scales[..count]);
        self.value_scales[..count].copy_from_slice(&other.value_scales[..count]);
        let keys = count.next_multiple_of(PANEL) * even(self.channels);
        self.keys[..keys].copy_from_slice(&other.keys[..keys]);
        for panel in 0..self.channels.div_ceil(PANEL) {
            let (to, from) = (
                panel * self.positions * PANEL,
                panel * other.positions * PANEL,
            );
            let values = even(count) * PANEL;
            self.values[to..to + values].copy_from_slice(&other.values[from..from + values]);
        }
    }

    /// Gives the memory of all but the first `kept` positions back to the system.
    pub(super) fn give_back(&mut self, kept: usize) {
        let kept = kept.next_multiple_of(PANEL).min(self.positions);
        give_back(&mut self.key_scales[kept..]);
        give_back(&mut self.value_scales[kept..]);
        give_back(&mut self.keys[kept * even(self.channels)..]);
        for panel in 0..self.channels.div_ceil(PANEL) {
            let all = panel * self.positions..(panel + 1) * self.positions;
            give_back(&mut self.values[(all.start + kept) * PANEL..all.end * PANEL]);
        }
    }
}

/// Attends query rows, each over the head that `head` gives for it, writing `[rows, channels]`.
/// The heads are of one kind. `sight(r)` never ends past what has been stored.
pub(super) fn attend<'a>(
    head: impl Fn(usize) -> &'a HeadCache<'a>,
    queries: Queries<'_>,
    sight: impl Fn(usize) -> Sight,
    scale: f32,
    out: &mut [f32],
    scratch: &mut Scratch,
) {
    let rows = queries.rows;
    let (channels, positions) = (head(0).channels, head(0).positions);
    assert!((1..=MOST_ROWS).contains(&rows), "a block of queries");
    assert_eq!(out.len(), rows * channels, "the result fills its rows");
    let first = (0..rows).map(|r| sight(r).first).min().unwrap_or(0) / PANEL * PANEL;
    let end = (0..rows).map(|r| sight(r).end).max().unwrap_or(0);
    assert!(
        end <= positions && first < end,
        "queries see stored positions"
    );
    let instructions = Instructions::detect();
    let width = (end - first).next_multiple_of(PANEL);
    let inner = channels.next_multiple_of(2);
    let Scratch {
        high,
        low,
        scores,
        sums,
    } = scratch;

    let (most, fine) = Fine::of_inner(inner);
    high.clear();
    high.resize(rows * inner, 0);
    low.clear();
    low.resize(rows * inner, 0);
    let mut scales = [0f32; MOST_ROWS];
    for (r, of_row) in scales.iter_mut().enumerate().take(rows) {
        let query = &queries.values[r * queries.stride..][..channels];
        let largest = largest_size(query);
        let parts = r * inner..r * inner + channels;
        let (high, low) = (&mut high[parts.clone()], &mut low[parts]);
        split_in_words(query, most / largest, fine.get(), high, low);
        *of_row = scale * largest / most;
    }
    scores.clear();
    scores.resize(rows * width, 0.0);
    let mut lanes = Vec::with_capacity(rows * width / PANEL);
    for at in (first..end).step_by(PANEL) {
        for r in 0..rows {
            lanes.push(Lane {
                high: high[r * inner..].as_ptr(),
                low: low[r * inner..].as_ptr(),
                panel: head(r).keys[at * inner..][..PANEL * inner].as_ptr(),
                out: scores[r * width + at - first..].as_mut_ptr(),
            });
        }
    }
    // SAFETY: each lane has a query, a whole panel, and scores of its own.
    unsafe { Lane::run(&lanes, inner / 2, fine, instructions) };

    high.clear();
    high.resize(rows * width, 0);
    low.clear();
    low.resize(rows * width, 0);
    let mut shares = [0f32; MOST_ROWS];
    for (r, scores) in scores.chunks_exact_mut(width).enumerate() {
        let (
            head,
            Sight {
                first: low_end,
                end,
            },
        ) = (head(r), sight(r));
        let seen = low_end - first..end - first;
        let (keys, values) = (&head.key_scales[first..], &head.value_scales[first..]);
        let [all, weighed] = attention_weights(scores, keys, values, &seen, scales[r]);
        let parts = r * width..(r + 1) * width;
        let (high, low) = (&mut high[parts.clone()], &mut low[parts]);
        split_in_words(scores, LARGEST / weighed, Fine::OF_WEIGHTS.get(), high, low);
        shares[r] = weighed / LARGEST / all;
    }
    let panels = channels.div_ceil(PANEL);
    sums.clear();
    sums.resize(rows * panels * PANEL, 0.0);
    // The same positions whatever is seen, so that a row's sums are.
    for part in (first / WEIGHTS * WEIGHTS..end).step_by(WEIGHTS) {
        let part = part.max(first)..(part + WEIGHTS).min(end.next_multiple_of(2));
        lanes.clear();
        for panel in 0..panels {
            for r in 0..rows {
                let values = &head(r).values[(panel * positions + part.start) * PANEL..];
                lanes.push(Lane {
                    high: high[r * width + part.start - first..].as_ptr(),
                    low: low[r * width + part.start - first..].as_ptr(),
                    panel: values[..part.len() * PANEL].as_ptr(),
                    out: sums[(r * panels + panel) * PANEL..].as_mut_ptr(),
                });
            }
        }
        // SAFETY: each lane has weights, the values of as many positions, and sums of its own.
        unsafe { Lane::run(&lanes, part.len() / 2, Fine::OF_WEIGHTS, instructions) };
    }
    let rows = out
        .chunks_exact_mut(channels)
        .zip(sums.chunks_exact(panels * PANEL));
    for ((out, sums), share) in rows.zip(shares) {
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = sum * share;
        }
    }
}

/// What attention works in.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    high: Vec<i16>,
    low: Vec<i16>,
    scores: Vec<f32>,
    sums: Vec<f32>,
}

fn even(channels: usize) -> usize {
    channels.next_multiple_of(2)
}

/// Most query rows that are attended together.
pub(super) const MOST_ROWS: usize = 12;

/// What a row at `position` may see: itself and what came before it, at most
/// `window` positions.
pub(crate) fn sight(position: usize, window: Option<usize>) -> Sight {
    let end = position + 1;
    Sight {
        first: window.map_or(0, |window| end.saturating_sub(window)),
        end,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A head of `keys` and `values`, one of each position, and what `query` attends to in it.
    fn attended(query: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>]) -> Vec<f32> {
        let room = Room::new(keys.len(), query.len());
        let mut numbers = vec![0; room.numbers()];
        // What was there before is never seen.
        let mut scales = vec![f32::NAN; room.scales()];
        let mut head = HeadCache::of(&mut numbers, &mut scales, room);
        for (position, (key, value)) in keys.iter().zip(values).enumerate() {
            head.set(position, key, value, &mut Vec::new());
        }
        let mut out = vec![0.0; query.len()];
        let queries = Queries {
            values: query,
            stride: query.len(),
            rows: 1,
        };
        let all = sight(keys.len() - 1, None);
        attend(
            |_| &head,
            queries,
            |_| all,
            1.0,
            &mut out,
            &mut Scratch::default(),
        );
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
        for (count, channels, spread) in [(1, 8, 1.0), (33, 40, 1.0), (90, 64, 4.0), (65, 32, 0.01)]
        {
            let (keys, values) = (
                rows(count, channels, spread, 1),
                rows(count, channels, spread, 2),
            );
            let query = &rows(1, channels, 0.3, 3)[0];
            let dot = |key: &Vec<f32>| -> f64 {
                key.iter()
                    .zip(query)
                    .map(|(a, b)| f64::from(*a) * f64::from(*b))
                    .sum()
            };
            let powers: Vec<f64> = keys.iter().map(|key| dot(key).exp()).collect();
            let all: f64 = powers.iter().sum();
            let largest = values
                .iter()
                .flatten()
                .fold(0f32, |most, x| most.max(x.abs()));
            for (at, found) in attended(query, &keys, &values).into_iter().enumerate() {
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
        assert_eq!(attended(&[1.0; 8], &zeros, &zeros), [0.0; 8]);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut values = zeros.clone();
            values[1][2] = bad;
            values[1][5] = 1.0;
            let out = attended(&[1.0; 8], &zeros, &values);
            assert!(out[2].is_nan(), "{bad}: {out:?}");
        }
    }
}
