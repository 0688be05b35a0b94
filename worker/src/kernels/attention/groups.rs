//! Attention of every row to every row of its group, for vision towers.

use super::super::{Shared, spread};
use super::Buffers;
use super::cache::{HeadCache, Room};
use super::rows::{MOST_ROWS, Queries, Sight};

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
    let work = 2 * groups * heads * positions * positions * dim;
    spread(groups * heads, work, Buffers::default, |buffers, index| {
        let (group, head) = (index / heads, index % heads);
        let line = |row: usize| &qkv[(group * positions + row) * 3 * width + head * dim..];
        let room = Room::new(positions, dim);
        let mut numbers = vec![0; room.numbers()];
        let mut scales = vec![0.0; room.scales()];
        let mut cache = HeadCache::of(&mut numbers, &mut scales, room);
        for row in 0..positions {
            let line = line(row);
            cache.set(
                row,
                &line[width..width + dim],
                &line[2 * width..2 * width + dim],
                &mut buffers.whole,
            );
        }
        for first in (0..positions).step_by(MOST_ROWS) {
            let rows = (positions - first).min(MOST_ROWS);
            buffers.out.resize(MOST_ROWS * dim, 0.0);
            let out_rows = &mut buffers.out[..rows * dim];
            let queries = Queries {
                values: line(first),
                stride: 3 * width,
                rows,
                head: |_| &cache,
                sight: |_| Sight {
                    first: 0,
                    end: positions,
                },
            };
            queries.attend(scale, out_rows, &mut buffers.scratch);
            for (r, from) in out_rows.chunks(dim).enumerate() {
                let at = (group * positions + first + r) * width + head * dim;
                // SAFETY: the row and head are inside the result, and each is one task's.
                unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), out.at(at), dim) };
            }
        }
    });
}
