//! Keys and values of one head, in the panels that the products read, and the
//! attention of a few query rows over them.

use super::super::block::{Block, F32, ROWS};
use super::super::pages::give_back;
use super::super::pointwise::softmax_row;
use super::super::{Instructions, PANEL};

/// Keys and values of one head: keys as panels of 32 positions
/// `[positions / 32][channels][32]`, values as panels of 32 channels
/// `[channels / 32][positions][32]`. As halves they would be read in half the
/// time, and logits would differ from the reference by 0.002, twice what is allowed.
#[derive(Debug)]
pub(crate) struct HeadCache<'a> {
    keys: &'a mut [f32],
    values: &'a mut [f32],
    positions: usize,
    channels: usize,
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
    /// Numbers that `positions` positions of `channels` channels take.
    pub(crate) fn numbers(positions: usize, channels: usize) -> usize {
        positions.next_multiple_of(PANEL) * (channels + channels.next_multiple_of(PANEL))
    }

    /// A head in `memory`, which has [`HeadCache::numbers`] numbers.
    pub(crate) fn of(memory: &'a mut [f32], positions: usize, channels: usize) -> Self {
        assert_eq!(
            memory.len(),
            Self::numbers(positions, channels),
            "a head fills its memory"
        );
        let positions = positions.next_multiple_of(PANEL);
        let (keys, values) = memory.split_at_mut(positions * channels);
        Self {
            keys,
            values,
            positions,
            channels,
        }
    }

    /// Bytes that one position of one head takes.
    pub(crate) fn bytes_per_position(channels: usize) -> usize {
        (channels + channels.next_multiple_of(PANEL)) * size_of::<f32>()
    }

    /// Stores the key and value of `position`.
    pub(crate) fn set(&mut self, position: usize, key: &[f32], value: &[f32]) {
        let (panel, column) = (position / PANEL, position % PANEL);
        let keys = &mut self.keys[panel * PANEL * self.channels..][..PANEL * self.channels];
        for (channel, x) in key.iter().enumerate() {
            keys[channel * PANEL + column] = *x;
        }
        for (panel, part) in value.chunks(PANEL).enumerate() {
            let at = (panel * self.positions + position) * PANEL;
            self.values[at..at + part.len()].copy_from_slice(part);
        }
    }

    /// Copies the first `count` positions from `other`.
    pub(super) fn copy_prefix(&mut self, other: &HeadCache<'_>, count: usize) {
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
        give_back(&mut self.keys[kept * self.channels..]);
        for panel in 0..self.channels.div_ceil(PANEL) {
            let all = panel * self.positions..(panel + 1) * self.positions;
            give_back(&mut self.values[(all.start + kept) * PANEL..all.end * PANEL]);
        }
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
                block.run::<F32>(instructions, rows);
            }
        }
        for (r, scores) in scratch.chunks_mut(width).enumerate() {
            let Sight {
                first: low,
                end: high,
            } = sight(r);
            scores[..low - first].fill(0.0);
            scores[high - first..].fill(0.0);
            softmax_row(&mut scores[low - first..high - first], scale);
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
                block.run::<F32>(instructions, rows);
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
        let block = |(panel, scores): (&[f32], &mut [f32])| Block {
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
        unsafe { Block::run_abreast(&blocks, instructions) };
        scores[..low - first].fill(0.0);
        scores[end - first..].fill(0.0);
        softmax_row(&mut scores[low - first..end - first], scale);
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
                Block::run_abreast(&blocks, instructions);
            } else {
                for block in blocks {
                    block.run::<F32>(instructions, 1);
                }
            }
        }
    }
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
