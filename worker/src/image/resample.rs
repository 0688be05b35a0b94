//! Pillow's `resize`, bit for bit: the same coefficients in the same fixed point,
//! the two passes in the same order. Resizing differently moves a model's answers. Only the wanted window of the
//! result is computed, padding is never laid out in memory, and of what the second pass reads only the rows of one
//! result row are there at a time.

use std::collections::VecDeque;
use std::ops::Range;

use super::config::Filter;
use super::picture::Picture;
use super::size::Size;

/// Bits after the point in Pillow's eight-bit resampling (`Resample.c`).
const PRECISION: u32 = 32 - 8 - 2;

/// A picture lying on a canvas of one colour.
pub(super) struct Canvas<'a> {
    picture: &'a Picture,
    size: Size,
    left: usize,
    top: usize,
    colour: [u8; 3],
}

impl<'a> Canvas<'a> {
    /// The picture alone.
    pub(super) fn bare(picture: &'a Picture) -> Self {
        Self {
            picture,
            size: picture.size(),
            left: 0,
            top: 0,
            colour: [0; 3],
        }
    }

    /// The picture in the middle of the smallest square, as `expand2square` puts it.
    pub(super) fn square(picture: &'a Picture, colour: [u8; 3]) -> Self {
        let Size { width, height } = picture.size();
        let side = width.max(height);
        Self {
            picture,
            size: Size::new(side, side),
            left: ((side - width) / 2) as usize,
            top: ((side - height) / 2) as usize,
            colour,
        }
    }

    pub(super) fn size(&self) -> Size {
        self.size
    }

    /// Resizes the whole canvas to `to` and returns the pixels of `columns` × `rows` of the result.
    pub(super) fn resize(
        &self,
        to: Size,
        columns: Range<usize>,
        rows: Range<usize>,
        filter: Filter,
    ) -> Vec<u8> {
        let across = Taps::new(self.size.width, to.width, columns, filter);
        let down = Taps::new(self.size.height, to.height, rows, filter);
        if self.shortens_first(to) {
            self.columns_first(&across, &down)
        } else {
            self.rows_first(&across, &down)
        }
    }

    /// Whether the height is resized before the width. Each pass rounds to eight
    /// bits, so the order shows. The rule is that of Pillow 13 as observed over
    /// hundreds of sizes; older releases always resized the width first.
    fn shortens_first(&self, to: Size) -> bool {
        let cut_rows = i64::from(self.size.height) - i64::from(to.height);
        let cut_columns = i64::from(self.size.width) - i64::from(to.width);
        cut_rows > 0 && cut_rows > 2 * cut_columns
    }

    fn rows_first(&self, across: &Taps, down: &Taps) -> Vec<u8> {
        let size = self.picture.size();
        let (width, height) = (size.width as usize, size.height as usize);
        let mut padded = vec![0; self.size.width as usize * 3];
        for pixel in padded.chunks_exact_mut(3) {
            pixel.copy_from_slice(&self.colour);
        }
        let inside = self.left * 3..(self.left + width) * 3;
        down.apply_to_columns(across.spans.len() * 3, |y, out| {
            match y.checked_sub(self.top).filter(|y| *y < height) {
                Some(y) => {
                    self.picture.read_row(y, 0, &mut padded[inside.clone()]);
                    across.apply_to_row(&padded, 0, out);
                }
                // Resizing one colour gives that colour.
                None => {
                    for pixel in out.chunks_exact_mut(3) {
                        pixel.copy_from_slice(&self.colour);
                    }
                }
            }
        })
    }

    /// Never met with padding: a padded canvas is square and so is its result.
    fn columns_first(&self, across: &Taps, down: &Taps) -> Vec<u8> {
        let needed = across.needed();
        let shortened = down.apply_to_columns(needed.len() * 3, |y, out| {
            self.picture.read_row(y, needed.start, out);
        });
        let stride = across.spans.len() * 3;
        let mut result = vec![0; down.spans.len() * stride];
        for (row, out) in shortened
            .chunks_exact(needed.len() * 3)
            .zip(result.chunks_exact_mut(stride))
        {
            across.apply_to_row(row, needed.start, out);
        }
        result
    }
}

/// For each wanted output sample, the input samples it is made of and their weights.
struct Taps {
    /// First input sample, number of them, and where their weights start.
    spans: Vec<(usize, usize, usize)>,
    weights: Vec<i32>,
}

impl Taps {
    fn new(from: u32, to: u32, wanted: Range<usize>, filter: Filter) -> Self {
        // Pillow leaves an axis that keeps its length alone.
        if from == to {
            let spans = wanted.map(|at| (at, 1, 0)).collect();
            return Self {
                spans,
                weights: vec![1 << PRECISION],
            };
        }
        let scale = f64::from(from) / f64::from(to);
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let mut taps = Self {
            spans: Vec::with_capacity(wanted.len()),
            weights: Vec::new(),
        };
        let mut exact = Vec::new();
        for at in wanted {
            let center = (at as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(from as usize);
            exact.clear();
            exact.extend(
                (first..end).map(|x| filter.weight((x as f64 - center + 0.5) * (1.0 / stretch))),
            );
            let sum: f64 = exact.iter().sum();
            taps.spans.push((first, exact.len(), taps.weights.len()));
            taps.weights.extend(exact.iter().map(|weight| {
                let fixed = weight / sum * f64::from(1 << PRECISION);
                (fixed + if fixed < 0.0 { -0.5 } else { 0.5 }) as i32
            }));
        }
        taps
    }

    /// Input samples that any wanted output sample is made of.
    fn needed(&self) -> Range<usize> {
        let start = self.spans.first().map_or(0, |span| span.0);
        let end = self
            .spans
            .iter()
            .map(|span| span.0 + span.1)
            .max()
            .unwrap_or(0);
        start..end
    }

    /// `row` starts at the sample `start`.
    fn apply_to_row(&self, row: &[u8], start: usize, out: &mut [u8]) {
        for (&(first, count, weights), out) in self.spans.iter().zip(out.chunks_exact_mut(3)) {
            let mut sums = [1 << (PRECISION - 1); 3];
            let pixels = row[(first - start) * 3..(first - start + count) * 3].chunks_exact(3);
            for (pixel, weight) in pixels.zip(&self.weights[weights..weights + count]) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*value) * weight;
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = clip(sum);
            }
        }
    }

    /// Makes rows of `stride` bytes out of the input rows that `read` fills. Each is read once, in order,
    /// and kept only while a result row needs it.
    fn apply_to_columns(&self, stride: usize, mut read: impl FnMut(usize, &mut [u8])) -> Vec<u8> {
        let mut result = vec![0; self.spans.len() * stride];
        let mut sums = vec![0; stride];
        let mut band: VecDeque<Vec<u8>> = VecDeque::new();
        let mut start = 0;
        for (&(first, count, weights), out) in
            self.spans.iter().zip(result.chunks_exact_mut(stride))
        {
            let mut spare = band
                .drain(..(first - start).min(band.len()))
                .collect::<Vec<_>>();
            start = first;
            while band.len() < count {
                let mut row = spare.pop().unwrap_or_else(|| vec![0; stride]);
                read(first + band.len(), &mut row);
                band.push_back(row);
            }
            sums.fill(1 << (PRECISION - 1));
            for (row, weight) in band.iter().zip(&self.weights[weights..weights + count]) {
                for (sum, value) in sums.iter_mut().zip(row) {
                    *sum += i32::from(*value) * weight;
                }
            }
            for (out, sum) in out.iter_mut().zip(&sums) {
                *out = clip(*sum);
            }
        }
        result
    }
}

fn clip(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

impl Filter {
    /// Half width in source pixels when enlarging.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}
