//! Keys and values of one head, in the panels that the products read, and the
//! attention of a few query rows over them.

use std::ops::Range;

use super::super::block::{Block, I16, ROWS};
use super::super::pages::give_back;
use super::super::pointwise::attention_weights;
use super::super::{Instructions, PANEL};

/// Keys and values of one head: keys as panels of 32 positions
/// `[positions / 32][channels][32]`, values as panels of 32 channels
/// `[channels / 32][positions][32]`. Each position's key, and each value, is kept in whole
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
        self.positions * (self.channels + self.channels.next_multiple_of(PANEL))
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
        let (keys, values) = numbers.split_at_mut(room.positions * room.channels);
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
        let numbers = channels + channels.next_multiple_of(PANEL);
        numbers * size_of::<i16>() + 2 * size_of::<f32>()
    }

    /// Stores the key and value of `position`.
    pub(crate) fn set(&mut self, position: usize, key: &[f32], value: &[f32]) {
        let (panel, column) = (position / PANEL, position % PANEL);
        let keys = &mut self.keys[panel * PANEL * self.channels..][..PANEL * self.channels];
        let scales = [scale(key), scale(value)];
        let [of_key, of_value] = scales.map(|scale| 1.0 / scale);
        [self.key_scales[position], self.value_scales[position]] = scales;
        for (channel, x) in key.iter().enumerate() {
            keys[channel * PANEL + column] = whole(x * of_key);
        }
        for (panel, part) in value.chunks(PANEL).enumerate() {
            let at = (panel * self.positions + position) * PANEL;
            for (to, x) in self.values[at..].iter_mut().zip(part) {
                *to = whole(x * of_value);
            }
        }
    }

    /// Copies the first `count` positions from `other`.
    pub(super) fn copy_prefix(&mut self, other: &HeadCache<'_>, count: usize) {
        self.key_scales[..count].copy_from_slice(&other.key_scales[..count]);
        self.value_scales[..count].copy_from_slice(&other.value_scales[..count]);
        let keys = count.next_multiple_of(PANEL) * self.channels;
        self.keys[..keys].copy_from_slice(&other.keys[..keys]);
        for panel in 0..self.channels.div_ceil(PANEL) {
            let (to, from) = (
                panel * self.positions * PANEL,
                panel * other.positions * PANEL,
            );
            self.values[to..to + count * PANEL]
                .copy_from_slice(&other.values[from..from + count * PANEL]);
        }
    }

    /// Gives the memory of all but the first `kept` positions back to the system.
    pub(super) fn give_back(&mut self, kept: usize) {
        let kept = kept.next_multiple_of(PANEL).min(self.positions);
        give_back(&mut self.key_scales[kept..]);
        give_back(&mut self.value_scales[kept..]);
        give_back(&mut self.keys[kept * self.channels..]);
        for panel in 0..self.channels.div_ceil(PANEL) {
            let all = panel * self.positions..(panel + 1) * self.positions;
            give_back(&mut self.values[(all.start + kept) * PANEL..all.end * PANEL]);
        }
    }

    /// Turns the products of a query and the numbers of all keys from `first` on, some panels,
    /// into what the numbers of the values are to be multiplied with.
    fn weigh(&self, products: &mut [f32], first: usize, seen: Range<usize>, scale: f32) {
        let panels = first..first + products.len();
        attention_weights(
            products,
            &self.key_scales[panels.clone()],
            &self.value_scales[panels],
            &(seen.start - first..seen.end - first),
            scale,
        );
    }

    /// Attends query rows, writing `[rows, channels]`. `sight(r)` never ends
    /// past what has been stored.
    pub(super) fn attend(
        &self,
        queries: Queries<'_>,
        sight: impl Fn(usize) -> Sight,
        scale: f32,
        out: &mut [f32],
        scratch: &mut Vec<f32>,
    ) {
        let Queries {
            values: queries,
            stride: query_stride,
            rows,
        } = queries;
        let channels = self.channels;
        assert!((1..=MOST_ROWS).contains(&rows), "a block of queries");
        assert!(
            queries.len() >= (rows - 1) * query_stride + channels,
            "queries fill their rows"
        );
        assert_eq!(out.len(), rows * channels, "the result fills its rows");
        let instructions = Instructions::detect();
        let first = (0..rows).map(|r| sight(r).first).min().unwrap_or(0) / PANEL * PANEL;
        let end = (0..rows).map(|r| sight(r).end).max().unwrap_or(0);
        assert!(
            end <= self.positions && first < end,
            "queries see stored positions"
        );
        let width = (end - first).next_multiple_of(PANEL);
        scratch.clear();
        scratch.resize(rows * width, 0.0);
        for panel in first / PANEL..end.div_ceil(PANEL) {
            // SAFETY: the panel is inside the keys, as `end` is inside the
            // positions, and the scores have a column for each of its keys.
            unsafe {
                let block = Block {
                    a: queries.as_ptr(),
                    a_stride: query_stride,
                    panel: self.keys.as_ptr().add(panel * PANEL * channels).cast(),
                    inner: channels,
                    c: scratch.as_mut_ptr().add(panel * PANEL - first),
                    c_stride: width,
                    columns: PANEL,
                    accumulate: false,
                };
                block.run::<I16>(instructions, rows);
            }
        }
        for (r, scores) in scratch.chunks_mut(width).enumerate() {
            let sight = sight(r);
            self.weigh(scores, first, sight.first..sight.end, scale);
        }
        for panel in 0..channels.div_ceil(PANEL) {
            // SAFETY: the values of `first..end` are inside the panel, and the
            // result has the columns that are written.
            unsafe {
                let block = Block {
                    a: scratch.as_ptr(),
                    a_stride: width,
                    panel: self
                        .values
                        .as_ptr()
                        .add((panel * self.positions + first) * PANEL)
                        .cast(),
                    inner: end - first,
                    c: out.as_mut_ptr().add(panel * PANEL),
                    c_stride: channels,
                    columns: PANEL.min(channels - panel * PANEL),
                    accumulate: false,
                };
                block.run::<I16>(instructions, rows);
            }
        }
    }
}

/// Attends one query row of each of several heads, `[heads, channels]`, writing the same.
/// `sight` never ends past what has been stored.
pub(super) fn attend_one_row(
    heads: &[HeadCache<'_>],
    queries: &[f32],
    sight: Sight,
    scale: f32,
    out: &mut [f32],
    scratch: &mut Vec<f32>,
) {
    let (channels, positions) = (heads[0].channels, heads[0].positions);
    assert_eq!(
        queries.len(),
        heads.len() * channels,
        "a query for each head"
    );
    assert_eq!(out.len(), queries.len(), "a result for each query");
    let Sight { first: low, end } = sight;
    let first = low / PANEL * PANEL;
    assert!(
        end <= positions && low < end,
        "queries see stored positions"
    );
    let width = (end - first).next_multiple_of(PANEL);
    let instructions = Instructions::detect();
    scratch.clear();
    scratch.resize(heads.len() * width, 0.0);
    for ((head, query), scores) in heads
        .iter()
        .zip(queries.chunks(channels))
        .zip(scratch.chunks_mut(width))
    {
        let panels = head.keys[first * channels..].chunks(PANEL * channels);
        let block = |(panel, scores): (&[i16], &mut [f32])| Block {
            a: query.as_ptr(),
            a_stride: channels,
            panel: panel.as_ptr().cast(),
            inner: channels,
            c: scores.as_mut_ptr(),
            c_stride: width,
            columns: PANEL,
            accumulate: false,
        };
        let blocks: Vec<_> = panels.zip(scores.chunks_mut(PANEL)).map(block).collect();
        // SAFETY: a panel is whole, and each has its own scores.
        unsafe { Block::run_abreast::<I16>(&blocks, instructions) };
        head.weigh(scores, first, low..end, scale);
    }
    for panel in 0..channels.div_ceil(PANEL) {
        let columns = PANEL.min(channels - panel * PANEL);
        let block = |((head, scores), out): ((&HeadCache<'_>, &[f32]), &mut [f32])| Block {
            a: scores.as_ptr(),
            a_stride: width,
            panel: head.values
                [(panel * positions + first) * PANEL..(panel * positions + end) * PANEL]
                .as_ptr()
                .cast(),
            inner: end - first,
            c: out[panel * PANEL..][..columns].as_mut_ptr(),
            c_stride: channels,
            columns,
            accumulate: false,
        };
        let rows = heads.iter().zip(scratch.chunks(width));
        let blocks: Vec<_> = rows.zip(out.chunks_mut(channels)).map(block).collect();
        // SAFETY: the values lie inside their panel, and each head has its own result.
        unsafe {
            if columns == PANEL {
                Block::run_abreast::<I16>(&blocks, instructions);
            } else {
                for block in blocks {
                    block.run::<I16>(instructions, 1);
                }
            }
        }
    }
}

/// What whole numbers of 16 bits are multiplied with to give these.
fn scale(values: &[f32]) -> f32 {
    // The bits of numbers without a sign are in their order, and after them those of none.
    let size = |x: &f32| x.abs().to_bits();
    let largest = values.iter().map(size).max().unwrap_or(0);
    f32::from_bits(largest) / f32::from(i16::MAX)
}

/// The whole number nearest to `x`, which is a number of 16 bits: to a sum with this one it is
/// the last bits.
fn whole(x: f32) -> i16 {
    (x + 12_582_912.0).to_bits() as i16
}

/// Most query rows that are attended together.
pub(super) const MOST_ROWS: usize = ROWS;

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
            head.set(position, key, value);
        }
        let mut out = vec![0.0; query.len()];
        let queries = Queries {
            values: query,
            stride: query.len(),
            rows: 1,
        };
        let all = sight(keys.len() - 1, None);
        head.attend(queries, |_| all, 1.0, &mut out, &mut Vec::new());
        let mut alone = vec![0.0; query.len()];
        attend_one_row(&[head], query, all, 1.0, &mut alone, &mut Vec::new());
        assert!(
            out.iter()
                .zip(&alone)
                .all(|(a, b)| a.to_bits() == b.to_bits())
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
