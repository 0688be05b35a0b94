//! A dense weight matrix in the order in which the products read it: panels of
//! 32 output columns, each with the inner dimension running down.

use super::block::{BF16, Block, F16, F32};
use super::pages::{Pages, Plain};
use super::{Instructions, PANEL, Shared, worth_sharing};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use std::ops::Range;

/// A piece of many rows that stays in the second cache while it meets
/// [`PANELS_AT_ONCE`] panels: 96 rows of 512 numbers are 192 KiB.
const ROWS_AT_ONCE: usize = 96;
const INNER_AT_ONCE: usize = 512;
const PANELS_AT_ONCE: usize = 8;
/// At most this many rows stream over the whole inner dimension.
const FEW_ROWS: usize = 24;

/// Up to so many numbers are kept as f32: 1 MiB stays in a core's caches, from which it is
/// read in less time than it takes to widen half of it.
const WIDE: usize = 1 << 18;

/// `[outputs, inputs]` weights as panels.
#[derive(Debug)]
pub(crate) struct PackedDense {
    panels: Panels,
    inputs: usize,
    outputs: usize,
}

#[derive(Debug)]
enum Panels {
    F32(Pages<f32>),
    F16(Pages<f16>),
    BF16(Pages<bf16>),
}

impl Panels {
    fn new(weights: &[f32], inputs: usize) -> Self {
        if weights.len() <= WIDE {
            Self::F32(pack(weights, inputs, |x| x))
        } else {
            Self::narrowest(weights, inputs)
        }
    }

    /// In the narrowest element that holds every one exactly.
    fn narrowest(weights: &[f32], inputs: usize) -> Self {
        let all = |are: fn(&[f32]) -> bool| weights.par_chunks(1 << 14).all(are);
        if all(are_bf16) {
            let upper = |x: f32| bf16::from_bits((x.to_bits() >> 16) as u16);
            Self::BF16(pack(weights, inputs, upper))
        } else if all(are_f16) {
            Self::F16(pack(weights, inputs, f16::from_f32))
        } else {
            Self::F32(pack(weights, inputs, |x| x))
        }
    }
}

impl PackedDense {
    /// Packs row-major `[outputs, inputs]`.
    pub(crate) fn new(weights: &[f32], outputs: usize, inputs: usize) -> Self {
        assert_eq!(weights.len(), outputs * inputs, "weights fill their shape");
        Self {
            panels: Panels::new(weights, inputs),
            inputs,
            outputs,
        }
    }

    pub(crate) fn inputs(&self) -> usize {
        self.inputs
    }

    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    pub(crate) fn bytes(&self) -> usize {
        match &self.panels {
            Panels::F32(panels) => panels.len() * 4,
            Panels::F16(panels) => panels.len() * 2,
            Panels::BF16(panels) => panels.len() * 2,
        }
    }

    /// `x` `[rows, inputs]` times the weights: `[rows, outputs]`.
    pub(crate) fn multiply(&self, x: &[f32], rows: usize, out: &mut [f32]) {
        match &self.panels {
            Panels::F32(panels) => self.run::<F32>(panels.as_ptr().cast(), 4, x, rows, out),
            Panels::F16(panels) => self.run::<F16>(panels.as_ptr().cast(), 2, x, rows, out),
            Panels::BF16(panels) => self.run::<BF16>(panels.as_ptr().cast(), 2, x, rows, out),
        }
    }

    fn run<const E: u8>(
        &self,
        panels: *const u8,
        width: usize,
        x: &[f32],
        rows: usize,
        out: &mut [f32],
    ) {
        assert_eq!(
            x.len(),
            rows * self.inputs,
            "the left factor fills its shape"
        );
        assert_eq!(out.len(), rows * self.outputs, "the result fills its shape");
        let instructions = Instructions::detect();
        let out = Shared(out.as_mut_ptr());
        let panels = Weights(panels);
        let panel_bytes = PANEL * self.inputs * width;
        let part = |index: usize, row: usize, start: usize, inner: usize| {
            let first = index * PANEL;
            // SAFETY: the panel and the rows of `x` have the lengths asserted
            // above, and every panel writes columns of its own.
            unsafe {
                Block {
                    a: x.as_ptr().add(row * self.inputs + start),
                    a_stride: self.inputs,
                    panel: panels.at(index * panel_bytes + start * PANEL * width),
                    inner,
                    c: out.at(row * self.outputs + first),
                    c_stride: self.outputs,
                    columns: PANEL.min(self.outputs - first),
                    accumulate: start > 0,
                }
                .run::<E>(instructions, (rows - row).min(ROWS_AT_ONCE));
            }
        };
        let count = self.outputs.div_ceil(PANEL);
        let group = |panels: Range<usize>| {
            for start in (0..self.inputs).step_by(INNER_AT_ONCE) {
                let inner = (self.inputs - start).min(INNER_AT_ONCE);
                for row in (0..rows).step_by(ROWS_AT_ONCE) {
                    for index in panels.clone() {
                        part(index, row, start, inner);
                    }
                }
            }
        };
        if !worth_sharing(rows * self.inputs * self.outputs) {
            group(0..count);
        } else if rows <= FEW_ROWS {
            // Every weight is read once: the panels just stream by.
            (0..count)
                .into_par_iter()
                .for_each(|index| part(index, 0, 0, self.inputs));
        } else {
            (0..count.div_ceil(PANELS_AT_ONCE))
                .into_par_iter()
                .for_each(|index| {
                    let first = index * PANELS_AT_ONCE;
                    group(first..(first + PANELS_AT_ONCE).min(count));
                });
        }
    }
}

/// Where the panels begin, for all threads.
#[derive(Clone, Copy)]
struct Weights(*const u8);

// SAFETY: the weights are only read.
unsafe impl Send for Weights {}
// SAFETY: as above.
unsafe impl Sync for Weights {}

impl Weights {
    /// # Safety
    /// `offset` lies inside the panels.
    unsafe fn at(self, offset: usize) -> *const u8 {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(offset) }
    }
}

/// Whether all are the upper halves of f32.
fn are_bf16(numbers: &[f32]) -> bool {
    let bits = numbers.iter().fold(0, |bits, x| bits | x.to_bits());
    bits & 0xffff == 0
}

/// Whether all are exact in half precision.
fn are_f16(numbers: &[f32]) -> bool {
    let (mut narrow, mut wide) = ([f16::ZERO; AT_ONCE], [0f32; AT_ONCE]);
    numbers.chunks(AT_ONCE).all(|numbers| {
        let (narrow, wide) = (&mut narrow[..numbers.len()], &mut wide[..numbers.len()]);
        narrow.convert_from_f32_slice(numbers);
        narrow.convert_to_f32_slice(wide);
        wide == numbers
    })
}

/// Rows and columns that are packed together, so that what is written stays in the first cache.
const AT_ONCE: usize = 32;

fn pack<T: Plain>(weights: &[f32], inputs: usize, narrow: impl Fn(f32) -> T + Sync) -> Pages<T> {
    let outputs = weights.len() / inputs.max(1);
    let mut panels = Pages::huge(outputs.div_ceil(PANEL) * PANEL * inputs);
    panels
        .par_chunks_mut(PANEL * inputs)
        .zip(weights.par_chunks(PANEL * inputs))
        .for_each(|(panel, rows)| {
            for (part, panel) in panel.chunks_mut(AT_ONCE * PANEL).enumerate() {
                for (column, row) in rows.chunks(inputs).enumerate() {
                    let row = &row[part * AT_ONCE..];
                    for (to, weight) in panel.chunks_exact_mut(PANEL).zip(row) {
                        to[column] = narrow(*weight);
                    }
                }
            }
        });
    panels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count)
            .map(|i| ((i * 7 + seed) as f32 * 0.713).sin())
            .collect()
    }

    #[test]
    fn every_element_and_every_shape_multiplies_as_written() {
        let narrow: [fn(f32) -> f32; 3] = [
            |x| x,
            |x| f16::from_f32(x).to_f32(),
            |x| bf16::from_f32(x).to_f32(),
        ];
        for narrow in narrow {
            for (rows, inputs, outputs) in [
                (1, 5, 3),
                (13, 40, 33),
                (25, 64, 70),
                (100, 1100, 270),
                (120, 32, 32),
            ] {
                let weights: Vec<f32> = numbers(outputs * inputs, 3)
                    .into_iter()
                    .map(narrow)
                    .collect();
                let x = numbers(rows * inputs, 11);
                let narrowest = PackedDense {
                    panels: Panels::narrowest(&weights, inputs),
                    inputs,
                    outputs,
                };
                let packed = PackedDense::new(&weights, outputs, inputs);
                let products = [packed, narrowest].map(|weights| {
                    let mut out = vec![f32::NAN; rows * outputs];
                    weights.multiply(&x, rows, &mut out);
                    out
                });
                // What is widened before or on the way is the same number.
                assert_eq!(products[0], products[1]);
                for (index, found) in products[0].iter().enumerate() {
                    let (row, column) = (index / outputs, index % outputs);
                    let wanted: f32 = (0..inputs)
                        .map(|p| x[row * inputs + p] * weights[column * inputs + p])
                        .sum();
                    assert!(
                        (found - wanted).abs() < 1e-6 * inputs as f32 + 1e-5,
                        "{rows}x{inputs}x{outputs}: {found} {wanted}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_among_others() {
        let (rows, inputs, outputs) = (129, 1130, 267);
        let weights = PackedDense::new(&numbers(outputs * inputs, 1), outputs, inputs);
        let x = numbers(rows * inputs, 2);
        let mut together = vec![0.0; rows * outputs];
        weights.multiply(&x, rows, &mut together);
        for row in 0..rows {
            let mut alone = vec![0.0; outputs];
            weights.multiply(&x[row * inputs..(row + 1) * inputs], 1, &mut alone);
            assert_eq!(alone, together[row * outputs..(row + 1) * outputs]);
        }
    }
}
