//! Products with weights of 8 or 4 bits. Weights are rounded in groups along
//! the inner dimension when they are loaded, each row of activations to 8 bits
//! when it is multiplied; sums within a group are whole numbers and therefore
//! exact, and groups are added one after another.

mod block;
mod round;
mod tiles;

use super::pages::Pages;
use super::{Instructions, PANEL, Shared, spread};
use block::QuantisedBlock;
use half::f16;
use rayon::prelude::*;
use round::{Rounded, round_group};

/// Rows of one call of a kernel.
const ROWS: usize = 6;

/// Inner positions that one instruction multiplies and adds.
const QUAD: usize = 4;

/// Bits of a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bits {
    /// 8, in groups of 64.
    Eight,
    /// 4, in groups of 32.
    Four,
}

impl Bits {
    /// Weights that share a scale.
    const fn group(self) -> usize {
        match self {
            Self::Eight => 64,
            Self::Four => 32,
        }
    }

    /// Stored number of the weight 0.
    const fn zero(self) -> i32 {
        match self {
            Self::Eight => 128,
            Self::Four => 8,
        }
    }

    /// Bytes of one group of 32 columns.
    const fn group_bytes(self) -> usize {
        match self {
            Self::Eight => self.group() * PANEL,
            Self::Four => self.group() * PANEL / 2,
        }
    }
}

/// `[outputs, inputs]` weights as panels of 32 columns. A panel is a row of
/// groups; a group holds quads of inner positions, 32 columns each. Four-bit
/// weights have two quads in the low and the high halves of the same bytes.
#[derive(Debug)]
pub(crate) struct PackedQuantised {
    bits: Bits,
    weights: Pages<u8>,
    /// `[panels][groups][32]`.
    scales: Pages<f16>,
    inputs: usize,
    outputs: usize,
}

impl PackedQuantised {
    /// Rounds and packs row-major `[outputs, inputs]`.
    pub(crate) fn new(weights: &[f32], outputs: usize, inputs: usize, bits: Bits) -> Self {
        assert_eq!(weights.len(), outputs * inputs, "weights fill their shape");
        let groups = inputs.div_ceil(bits.group());
        let panels = outputs.div_ceil(PANEL);
        let mut packed = Pages::<u8>::huge(panels * groups * bits.group_bytes());
        let mut scales = Pages::<f16>::huge(panels * groups * PANEL);
        packed
            .par_chunks_mut(groups * bits.group_bytes())
            .zip(scales.par_chunks_mut(groups * PANEL))
            .zip(weights.par_chunks(PANEL * inputs))
            .for_each(|((packed, scales), rows)| {
                // What is not written below stays the weight 0.
                packed.fill(match bits {
                    Bits::Eight => 128,
                    Bits::Four => 0x88,
                });
                for (column, row) in rows.chunks(inputs).enumerate() {
                    for (group, part) in row.chunks(bits.group()).enumerate() {
                        let bytes = &mut packed[group * bits.group_bytes()..][..bits.group_bytes()];
                        scales[group * PANEL + column] = round_group(part, bits, column, bytes);
                    }
                }
            });
        Self {
            bits,
            weights: packed,
            scales,
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
        self.weights.len() + 2 * self.scales.len()
    }

    /// `x` `[rows, inputs]` times the weights: `[rows, outputs]`.
    pub(crate) fn multiply(&self, x: &[f32], rows: usize, out: &mut [f32]) {
        assert_eq!(
            x.len(),
            rows * self.inputs,
            "the left factor fills its shape"
        );
        assert_eq!(out.len(), rows * self.outputs, "the result fills its shape");
        let instructions = Instructions::detect();
        let rounded = Rounded::new(x, self.inputs, self.bits);
        let groups = self.inputs.div_ceil(self.bits.group());
        let out = Shared(out.as_mut_ptr());
        let panels = self.outputs.div_ceil(PANEL);
        let work = rows * self.inputs * self.outputs;
        let on_tiles = tiles::are_worth(self.bits, rows);
        let at_once = if on_tiles { tiles::ROWS } else { ROWS };
        spread(
            panels,
            work,
            || (),
            |(), panel| {
                for row in (0..rows).step_by(at_once) {
                    let block = QuantisedBlock {
                        weights: &self.weights[panel * groups * self.bits.group_bytes()..]
                            [..groups * self.bits.group_bytes()],
                        scales: &self.scales[panel * groups * PANEL..][..groups * PANEL],
                        values: &rounded.values[row * rounded.stride..],
                        row_scales: &rounded.scales[row * groups..],
                        excess: &rounded.excess[row * groups..],
                        groups,
                        stride: rounded.stride,
                    };
                    let count = (rows - row).min(at_once);
                    let first = panel * PANEL;
                    let columns = PANEL.min(self.outputs - first);
                    let write = |sums: &[[f32; PANEL]]| {
                        for (r, sums) in sums.iter().enumerate().take(count) {
                            // SAFETY: the columns are inside the result, and each panel writes its own.
                            unsafe {
                                let to = out.at((row + r) * self.outputs + first);
                                std::ptr::copy_nonoverlapping(sums.as_ptr(), to, columns);
                            }
                        }
                    };
                    if on_tiles {
                        write(&block.run_on_tiles(self.bits, count));
                    } else {
                        write(&block.run(self.bits, instructions, count));
                    }
                }
            },
        );
    }
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
    fn products_are_within_the_rounding_of_their_bits() {
        for (bits, allowed) in [(Bits::Eight, 0.01), (Bits::Four, 0.15)] {
            for (rows, inputs, outputs) in [(1, 5, 3), (7, 100, 33), (13, 257, 64)] {
                let weights = numbers(outputs * inputs, 3);
                let x = numbers(rows * inputs, 11);
                let mut out = vec![f32::NAN; rows * outputs];
                PackedQuantised::new(&weights, outputs, inputs, bits).multiply(&x, rows, &mut out);
                let (mut error, mut size) = (0.0, 0.0);
                for (index, found) in out.iter().enumerate() {
                    let (row, column) = (index / outputs, index % outputs);
                    let wanted: f32 = (0..inputs)
                        .map(|p| x[row * inputs + p] * weights[column * inputs + p])
                        .sum();
                    error += (found - wanted).powi(2);
                    size += wanted.powi(2);
                }
                let share = (error / size).sqrt();
                assert!(
                    share < allowed,
                    "{bits:?} {rows}x{inputs}x{outputs}: {share}"
                );
            }
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_whole_sums() {
        let (rows, inputs, outputs) = (5, 200, 40);
        let x = numbers(rows * inputs, 5);
        for bits in [Bits::Eight, Bits::Four] {
            let packed = PackedQuantised::new(&numbers(outputs * inputs, 9), outputs, inputs, bits);
            let rounded = Rounded::new(&x, inputs, bits);
            let groups = inputs.div_ceil(bits.group());
            let block = QuantisedBlock {
                weights: &packed.weights[..groups * bits.group_bytes()],
                scales: &packed.scales[..groups * PANEL],
                values: &rounded.values,
                row_scales: &rounded.scales,
                excess: &rounded.excess,
                groups,
                stride: rounded.stride,
            };
            let plain = block.run(bits, Instructions::Plain, rows);
            for instructions in [Instructions::Avx2, Instructions::Avx512] {
                if instructions <= Instructions::detect() {
                    let found = block.run(bits, instructions, rows);
                    for (a, b) in plain.iter().flatten().zip(found.iter().flatten()) {
                        assert!((a - b).abs() < 1e-4, "{bits:?} {instructions:?}: {a} {b}");
                    }
                }
            }
            if tiles::are_there() {
                let vectors = block.run(bits, Instructions::Avx512, rows);
                let tiles = block.run_on_tiles(bits, rows);
                assert_eq!(vectors[..rows], tiles[..rows], "{bits:?}: the same bits");
            }
        }
    }
}
