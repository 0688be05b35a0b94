//! Rounding to few bits: weights in groups, once, and rows of activations each time.

use super::super::{pointwise, worth_sharing};
use super::{Bits, PANEL, QUAD};
use half::f16;
use rayon::prelude::*;

/// Multiplications that take as long as rounding a number.
const ROUNDING: usize = 4;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Activations of some rows, rounded to 8 bits.
pub(super) struct Rounded {
    /// `[rows][stride]`, of which the first `groups * group` count.
    pub(super) values: Vec<i8>,
    pub(super) stride: usize,
    /// `[rows][groups]`.
    pub(super) scales: Vec<f32>,
    /// `[rows][groups]`: what the zero of the weights adds to each sum.
    pub(super) excess: Vec<i32>,
}

/// Rounds the weights of one column in one group to where they belong in the
/// group's `bytes`; gives their scale.
pub(super) fn round_group(weights: &[f32], bits: Bits, column: usize, bytes: &mut [u8]) -> f16 {
    let most = weights
        .iter()
        .copied()
        .fold(0f32, |a, b| if b.abs() > a.abs() { b } else { a });
    let scale = f16::from_f32(match bits {
        Bits::Eight => most.abs() / 127.0,
        // The largest weight becomes -8, the one end of the range that has no twin.
        Bits::Four => most / -8.0,
    });
    // A scale beyond half precision's range is no weight of any model; zero is.
    let inverse = if scale == f16::ZERO {
        0.0
    } else {
        1.0 / scale.to_f32()
    };
    for (p, weight) in weights.iter().enumerate() {
        let (quad, place) = (p / QUAD, p % QUAD);
        let whole = pointwise::nearest(weight * inverse);
        match bits {
            Bits::Eight => {
                let stored = whole.clamp(-127, 127) + bits.zero();
                bytes[quad * PANEL * QUAD + column * QUAD + place] = stored as u8;
            }
            Bits::Four => {
                let stored = (whole + bits.zero()).clamp(0, 15) as u8;
                let byte = &mut bytes[quad / 2 * PANEL * QUAD + column * QUAD + place];
                *byte = if quad % 2 == 0 {
                    (*byte & 0xf0) | stored
                } else {
                    (*byte & 0x0f) | (stored << 4)
                };
            }
        }
    }
    scale
}

/// Where the values, scales and excess of one row go, and the row.
type Row<'a> = (((&'a mut [i8], &'a mut [f32]), &'a mut [i32]), &'a [f32]);

impl Rounded {
    pub(super) fn new(x: &[f32], inputs: usize, bits: Bits) -> Self {
        let group = bits.group();
        let groups = inputs.div_ceil(group);
        let rows = x.len() / inputs;
        // An odd number of cache lines: rows at a power of two would take each
        // other's places in the cache.
        let stride = ((groups * group).div_ceil(LINE) | 1) * LINE;
        let mut rounded = Self {
            values: vec![0; rows * stride],
            stride,
            scales: vec![0.0; rows * groups],
            excess: vec![0; rows * groups],
        };
        let (values, scales, excess) = (
            &mut rounded.values,
            &mut rounded.scales,
            &mut rounded.excess,
        );
        let one = |(((values, scales), excess), row): Row<'_>| {
            for (index, part) in row.chunks(group).enumerate() {
                let (scale, sum) =
                    pointwise::round_to_bytes(part, &mut values[index * group..][..part.len()]);
                scales[index] = scale;
                excess[index] = sum * bits.zero();
            }
        };
        if worth_sharing(x.len() * ROUNDING) {
            values
                .par_chunks_mut(stride)
                .zip(scales.par_chunks_mut(groups))
                .zip(excess.par_chunks_mut(groups))
                .zip(x.par_chunks(inputs))
                .with_min_len(8)
                .for_each(one);
        } else {
            values
                .chunks_mut(stride)
                .zip(scales.chunks_mut(groups))
                .zip(excess.chunks_mut(groups))
                .zip(x.chunks(inputs))
                .for_each(one);
        }
        rounded
    }
}
