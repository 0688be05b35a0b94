//! Scaled dot-product attention of a few query rows over keys and values that
//! are kept in the panels that the products read.

use super::block::{Block, F32, ROWS};
use super::pointwise::{rotate, softmax_row};
use super::{Instructions, PANEL, Shared};
use crate::kv::{Rows, Span};
use rayon::prelude::*;

/// Keys and values of one head: keys as panels of 32 positions
/// `[positions / 32][channels][32]`, values as panels of 32 channels
/// `[channels / 32][positions][32]`.
#[derive(Debug, Clone)]
pub(crate) struct HeadCache {
    keys: Vec<f32>,
    values: Vec<f32>,
    positions: usize,
    channels: usize,
}

/// What a query row may see: positions `first..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sight {
    pub(crate) first: usize,
    pub(crate) end: usize,
}

impl HeadCache {
    /// Room for `positions` positions of `channels` channels. The memory is
    /// taken from the system when it is first written.
    pub(crate) fn new(positions: usize, channels: usize) -> Self {
        let positions = positions.next_multiple_of(PANEL);
        Self {
            keys: vec![0.0; positions * channels],
            values: vec![0.0; positions * channels.next_multiple_of(PANEL)],
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
    pub(crate) fn copy_prefix(&mut self, other: &Self, count: usize) {
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

    /// Attends `rows` query rows, at most [`MOST_ROWS`]. Row `r` of the
    /// queries begins at `queries[r * query_stride]`; the result's rows lie
    /// `out_stride` apart. `sight(r)` never ends past what has been stored.
    #[allow(clippy::too_many_arguments, reason = "two matrices with their strides")]
    pub(crate) fn attend(
        &self,
        queries: &[f32],
        query_stride: usize,
        rows: usize,
        sight: impl Fn(usize) -> Sight,
        scale: f32,
        out: &mut [f32],
        scratch: &mut Vec<f32>,
    ) {
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
                Block {
                    a: queries.as_ptr(),
                    a_stride: query_stride,
                    panel: self.keys.as_ptr().add(panel * PANEL * channels).cast(),
                    inner: channels,
                    c: scratch.as_mut_ptr().add(panel * PANEL - first),
                    c_stride: width,
                    columns: PANEL,
                    accumulate: false,
                }
                .run::<F32>(instructions, rows);
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
                Block {
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
                }
                .run::<F32>(instructions, rows);
            }
        }
    }
}

/// Most query rows that are attended together.
const MOST_ROWS: usize = ROWS;

/// What a row at `position` may see: itself and what came before it, at most
/// `window` positions.
pub(crate) fn sight(position: usize, window: Option<usize>) -> Sight {
    let end = position + 1;
    Sight {
        first: window.map_or(0, |window| end.saturating_sub(window)),
        end,
    }
}

/// The heads of a batch and its rows.
pub(crate) struct Query<'a> {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) window: Option<usize>,
    pub(crate) rows: &'a Rows,
}

/// Some query rows that see the same head's keys and are attended together:
/// the heads of a group at one position, or one head at several positions.
struct Task {
    span: Span,
    kv_head: usize,
    /// First row of the batch.
    row: usize,
    rows: usize,
    /// First query head.
    head: usize,
    heads: usize,
}

impl Query<'_> {
    fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    fn tasks(&self) -> Vec<Task> {
        let group = self.heads / self.kv_heads;
        let mut tasks = Vec::new();
        for span in &self.rows.spans {
            for kv_head in 0..self.kv_heads {
                let first = kv_head * group;
                let mut push = |row, rows, head, heads| {
                    tasks.push(Task {
                        span: *span,
                        kv_head,
                        row,
                        rows,
                        head,
                        heads,
                    });
                };
                if span.count == 1 {
                    for head in (first..first + group).step_by(MOST_ROWS) {
                        push(span.row, 1, head, (first + group - head).min(MOST_ROWS));
                    }
                } else {
                    for row in (span.row..span.row + span.count).step_by(MOST_ROWS) {
                        let rows = (span.row + span.count - row).min(MOST_ROWS);
                        for head in first..first + group {
                            push(row, rows, head, 1);
                        }
                    }
                }
            }
        }
        tasks
    }

    /// Rotates and stores the keys of every span, and stores its values.
    fn store(&self, caches: &mut [HeadCache], qkv: &[f32]) {
        let dim = self.head_dim;
        let half = dim / 2;
        let mut spans = vec![None; caches.len() / self.kv_heads];
        for span in &self.rows.spans {
            spans[span.slot] = Some(*span);
        }
        caches
            .par_iter_mut()
            .enumerate()
            .for_each(|(index, cache)| {
                let Some(span) = spans[index / self.kv_heads] else {
                    return;
                };
                let head = index % self.kv_heads;
                let mut key = vec![0f32; dim];
                for offset in 0..span.count {
                    let row = span.row + offset;
                    let line = &qkv[row * self.width()..][..self.width()];
                    let from = (self.heads + head) * dim;
                    let angles = row * half..(row + 1) * half;
                    rotate(
                        &line[from..from + dim],
                        &self.rows.cos[angles.clone()],
                        &self.rows.sin[angles],
                        &mut key,
                    );
                    let from = from + self.kv_heads * dim;
                    cache.set(span.start + offset, &key, &line[from..from + dim]);
                }
            });
    }
}

/// Rotates queries and keys of `qkv` `[rows, (heads + 2 kv_heads) * head_dim]`,
/// stores keys and values in `caches` `[slots * kv_heads]`, and attends:
/// `[rows, heads * head_dim]`.
pub(crate) fn attend_spans(
    query: &Query<'_>,
    caches: &mut [HeadCache],
    qkv: &[f32],
    out: &mut [f32],
) {
    query.store(caches, qkv);
    let (dim, half) = (query.head_dim, query.head_dim / 2);
    let width = query.heads * dim;
    let caches = &*caches;
    assert_eq!(
        out.len() * query.width(),
        qkv.len() * width,
        "the result has the queries' rows"
    );
    let out = Shared(out.as_mut_ptr());
    let scale = 1.0 / (dim as f32).sqrt();
    query
        .tasks()
        .into_par_iter()
        .for_each_init(Buffers::default, |buffers, task| {
            let count = task.rows * task.heads;
            let cache = &caches[task.span.slot * query.kv_heads + task.kv_head];
            let place = |r: usize| (task.row + r / task.heads, task.head + r % task.heads);
            buffers.queries.resize(count * dim, 0.0);
            buffers.out.resize(count * dim, 0.0);
            for r in 0..count {
                let (row, head) = place(r);
                let angles = row * half..(row + 1) * half;
                rotate(
                    &qkv[row * query.width() + head * dim..][..dim],
                    &query.rows.cos[angles.clone()],
                    &query.rows.sin[angles],
                    &mut buffers.queries[r * dim..][..dim],
                );
            }
            let sight =
                |r: usize| sight(task.span.start + place(r).0 - task.span.row, query.window);
            let (queries, out_rows) = (
                &buffers.queries[..count * dim],
                &mut buffers.out[..count * dim],
            );
            cache.attend(
                queries,
                dim,
                count,
                sight,
                scale,
                out_rows,
                &mut buffers.scores,
            );
            for r in 0..count {
                let (row, head) = place(r);
                let from = &buffers.out[r * dim..][..dim];
                // SAFETY: the row and head are inside the result, and each is one task's.
                unsafe {
                    std::ptr::copy_nonoverlapping(
                        from.as_ptr(),
                        out.at(row * width + head * dim),
                        dim,
                    );
                };
            }
        });
}

#[derive(Default)]
struct Buffers {
    queries: Vec<f32>,
    scores: Vec<f32>,
    out: Vec<f32>,
}

/// Attention of every row to every row of its group, for vision towers: `qkv`
/// `[groups * positions, 3 * heads * head_dim]` to `[.., heads * head_dim]`.
pub(crate) fn attend_groups(
    qkv: &[f32],
    positions: usize,
    heads: usize,
    dim: usize,
    out: &mut [f32],
) {
    let width = heads * dim;
    let groups = out.len() / (positions * width);
    assert_eq!(
        qkv.len(),
        groups * positions * 3 * width,
        "queries, keys and values fill their rows"
    );
    assert_eq!(
        out.len(),
        groups * positions * width,
        "the result fills its rows"
    );
    let out = Shared(out.as_mut_ptr());
    let scale = 1.0 / (dim as f32).sqrt();
    (0..groups * heads)
        .into_par_iter()
        .for_each_init(Buffers::default, |buffers, index| {
            let (group, head) = (index / heads, index % heads);
            let line = |row: usize| &qkv[(group * positions + row) * 3 * width + head * dim..];
            let mut cache = HeadCache::new(positions, dim);
            for row in 0..positions {
                let line = line(row);
                cache.set(
                    row,
                    &line[width..width + dim],
                    &line[2 * width..2 * width + dim],
                );
            }
            for first in (0..positions).step_by(MOST_ROWS) {
                let rows = (positions - first).min(MOST_ROWS);
                buffers.out.resize(MOST_ROWS * dim, 0.0);
                let sight = |_| Sight {
                    first: 0,
                    end: positions,
                };
                let out_rows = &mut buffers.out[..rows * dim];
                cache.attend(
                    line(first),
                    3 * width,
                    rows,
                    sight,
                    scale,
                    out_rows,
                    &mut buffers.scores,
                );
                for (r, from) in out_rows.chunks(dim).enumerate() {
                    let at = (group * positions + first + r) * width + head * dim;
                    // SAFETY: the row and head are inside the result, and each is one task's.
                    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), out.at(at), dim) };
                }
            }
        });
}
