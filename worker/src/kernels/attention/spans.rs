//! Attention of a batch of sequences, each over what its slot holds.

use super::super::pointwise::rotate;
use super::super::{Shared, spread, worth_sharing};
use super::rows::{MOST_ROWS, Queries, sight};
use super::{Buffers, HeadCache};
use crate::kv::{Rows, Span};
use rayon::prelude::*;

/// The heads of a batch and its rows.
pub(crate) struct Query<'a> {
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) window: Option<usize>,
    pub(crate) rows: &'a Rows,
}

/// Some query rows that are attended together: the heads of a group at one position, or one
/// head at several positions, which see the same head's keys; or heads of one position that
/// each see their own.
struct Task {
    /// Number of the span, and what it is.
    at: usize,
    span: Span,
    /// First of the heads whose keys they see, and how many.
    kv_head: usize,
    kv_heads: usize,
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
        for (at, span) in self.rows.spans.iter().enumerate() {
            if span.count == 1 && group == 1 {
                for head in (0..self.heads).step_by(MOST_HEADS) {
                    let heads = (self.heads - head).min(MOST_HEADS);
                    tasks.push(Task {
                        at,
                        span: *span,
                        kv_head: head,
                        kv_heads: heads,
                        row: span.row,
                        rows: 1,
                        head,
                        heads,
                    });
                }
                continue;
            }
            for kv_head in 0..self.kv_heads {
                let first = kv_head * group;
                let mut push = |row, rows, head, heads| {
                    tasks.push(Task {
                        at,
                        span: *span,
                        kv_head,
                        kv_heads: 1,
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
    fn store(&self, caches: &mut [Vec<HeadCache<'_>>], qkv: &[f32]) {
        let dim = self.head_dim;
        let half = dim / 2;
        let heads = caches.iter_mut().zip(&self.rows.spans);
        let mut heads: Vec<_> = heads
            .flat_map(|(heads, span)| heads.iter_mut().enumerate().map(move |head| (head, *span)))
            .collect();
        let rows: usize = self.rows.spans.iter().map(|span| span.count).sum();
        let one =
            |buffers: &mut Buffers,
             ((head, cache), span): &mut ((usize, &mut HeadCache<'_>), Span)| {
                let Buffers { key, whole, .. } = buffers;
                key.resize(dim, 0.0);
                for offset in 0..span.count {
                    let row = span.row + offset;
                    let line = &qkv[row * self.width()..][..self.width()];
                    let from = (self.heads + *head) * dim;
                    let angles = row * half..(row + 1) * half;
                    rotate(
                        &line[from..from + dim],
                        &self.rows.cos[angles.clone()],
                        &self.rows.sin[angles],
                        key,
                    );
                    let from = from + self.kv_heads * dim;
                    cache.set(span.start + offset, key, &line[from..from + dim], whole);
                }
            };
        if worth_sharing(rows * self.kv_heads * dim * STORING) {
            heads.par_iter_mut().for_each_init(Buffers::default, one);
        } else {
            let mut buffers = Buffers::default();
            heads.iter_mut().for_each(|head| one(&mut buffers, head));
        }
    }
}

/// Most heads of one position that are attended together, each over keys of its own.
const MOST_HEADS: usize = 4;

/// Multiplications that take as long as storing a number in its panel.
const STORING: usize = 16;

/// Rotates queries and keys of `qkv` `[rows, (heads + 2 kv_heads) * head_dim]`,
/// stores keys and values in `caches`, the `[kv_heads]` of each span, and
/// attends: `[rows, heads * head_dim]`.
pub(crate) fn attend_spans(
    query: &Query<'_>,
    caches: &mut [Vec<HeadCache<'_>>],
    qkv: &[f32],
    out: &mut [f32],
) {
    assert_eq!(
        caches.len(),
        query.rows.spans.len(),
        "every span has a cache"
    );
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
    let tasks = query.tasks();
    let seen = |span: &Span| span.count * (span.start + span.count);
    let work = 2 * width * query.rows.spans.iter().map(seen).sum::<usize>();
    spread(tasks.len(), work, Buffers::default, |buffers, index| {
        let task = &tasks[index];
        let count = task.rows * task.heads;
        let caches = &caches[task.at][task.kv_head..task.kv_head + task.kv_heads];
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
        let out_rows = &mut buffers.out[..count * dim];
        let queries = Queries {
            values: &buffers.queries[..count * dim],
            stride: dim,
            rows: count,
            head: |r: usize| &caches[r.min(caches.len() - 1)],
            sight: |r| sight(task.span.start + place(r).0 - task.span.row, query.window),
        };
        queries.attend(scale, out_rows, &mut buffers.scratch);
        for r in 0..count {
            let (row, head) = place(r);
            let from = &buffers.out[r * dim..][..dim];
            // SAFETY: the row and head are inside the result, and each is one task's.
            unsafe {
                std::ptr::copy_nonoverlapping(from.as_ptr(), out.at(row * width + head * dim), dim);
            };
        }
    });
}
