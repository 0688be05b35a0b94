//! How a batch is shared among the threads. Weights that do not fit the
//! processor's caches are read once for all rows, each thread its columns. Weights
//! that do are better read by every thread for sequences of its own: then
//! threads meet once a step instead of several times a layer.

use crate::kv::Span;
use std::ops::Range;

/// Weights of at most so many bytes are read by each thread; a core's second
/// cache has 1 to 2 MiB.
const HELD: usize = 4 << 20;

/// Multiplications below which a run is not worth a thread of its own.
const WORTH: usize = 1 << 19;

/// What one row costs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    /// Bytes of all weights.
    pub(super) bytes: usize,
    /// Multiplications with all weights.
    pub(super) row: usize,
}

/// The spans of each run, in order. A span stays whole: its later rows see its
/// earlier ones.
pub(super) fn split(spans: &[Span], cost: Cost, threads: usize) -> Vec<Range<usize>> {
    let rows: usize = spans.iter().map(|span| span.count).sum();
    let count = threads.min(rows * cost.row / WORTH).min(spans.len());
    let whole = || std::iter::once(0..spans.len()).collect();
    if cost.bytes > HELD || count < 2 {
        return whole();
    }
    let mut runs = Vec::with_capacity(count);
    let (mut first, mut seen) = (0, 0);
    for (at, span) in spans.iter().enumerate() {
        seen += span.count;
        // Where the next one would lie more beyond this run's end than before it.
        let next = spans.get(at + 1).map_or(0, |span| span.count);
        let enough = (2 * seen + next) * count >= 2 * rows * (runs.len() + 1);
        if enough || at + 1 == spans.len() {
            runs.push(first..at + 1);
            first = at + 1;
        }
    }
    let longest = |run: &Range<usize>| spans[run.clone()].iter().map(|span| span.count).sum();
    // A chunk of a prompt beside single tokens is shared by columns.
    let longest: usize = runs.iter().map(longest).max().unwrap_or(0);
    if 2 * longest * count > 3 * rows {
        return whole();
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(counts: &[usize]) -> Vec<Span> {
        let mut row = 0;
        let span = |(slot, &count): (usize, &usize)| {
            row += count;
            Span {
                slot,
                start: 0,
                row: row - count,
                count,
            }
        };
        counts.iter().enumerate().map(span).collect()
    }

    #[test]
    fn sequences_are_dealt_out_where_the_weights_are_small_and_the_work_is_worth_it() {
        let small = Cost {
            bytes: 2 << 20,
            row: 1 << 20,
        };
        let tiny = Cost {
            row: 1 << 17,
            ..small
        };
        let large = Cost {
            bytes: 2 << 30,
            row: 1 << 30,
        };
        for (counts, cost, threads, wanted) in [
            (&[1; 8][..], small, 2, &[(0, 4), (4, 8)][..]),
            (&[1; 7], small, 2, &[(0, 3), (3, 7)]),
            (&[1; 8], small, 3, &[(0, 3), (3, 5), (5, 8)]),
            // Not worth a second thread.
            (&[1; 2], tiny, 2, &[(0, 2)]),
            (&[1; 8], small, 1, &[(0, 8)]),
            // Read once for all.
            (&[1; 8], large, 2, &[(0, 8)]),
            // One chunk is most of the work.
            (&[1, 1, 128], small, 2, &[(0, 3)]),
            (&[60, 1, 62], small, 2, &[(0, 2), (2, 3)]),
            (&[128], small, 2, &[(0, 1)]),
        ] {
            let found: Vec<_> = split(&spans(counts), cost, threads)
                .into_iter()
                .map(|run| (run.start, run.end))
                .collect();
            assert_eq!(found, wanted, "{counts:?} on {threads}");
        }
    }
}
