//! An embedding table that stays in its file: a sequence needs few of its
//! rows, so none is copied before it is asked for.

use super::header::{Entry, Kind};
use super::map::Mapped;
use super::{floats, read_floats};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// `[rows, width]` floats in a mapped file.
#[derive(Debug)]
pub struct Table {
    file: Arc<Mapped>,
    bytes: Range<usize>,
    kind: Kind,
    width: usize,
    row_bytes: usize,
}

impl Table {
    /// `None` where the elements are no floats.
    pub(super) fn new(file: Arc<Mapped>, entry: &Entry, width: usize) -> Option<Self> {
        let element = match entry.kind {
            Kind::F64 => 8,
            Kind::F32 => 4,
            Kind::F16 | Kind::BF16 => 2,
            _ => return None,
        };
        Some(Self {
            file,
            bytes: entry.bytes.clone(),
            kind: entry.kind,
            width,
            row_bytes: width * element,
        })
    }

    /// Copies row `index` to `row`.
    ///
    /// # Panics
    /// The table has no such row, or `row` is not one row long.
    pub fn row(&self, index: usize, row: &mut [f32]) {
        let bytes = &self.file[self.bytes.clone()][index * self.row_bytes..][..self.row_bytes];
        assert_eq!(row.len(), self.width, "a row of the table");
        // A table is of floats.
        let _ = read_floats(bytes, self.kind, row);
    }

    /// The first element that is no finite number.
    pub(super) fn first_not_finite(&self) -> Option<(usize, f32)> {
        self.file[self.bytes.clone()]
            .par_chunks(self.row_bytes)
            .enumerate()
            .find_map_first(|(row, bytes)| {
                let values = floats(bytes, self.kind)?;
                let column = values.iter().position(|x| !x.is_finite())?;
                Some((row * self.width + column, values[column]))
            })
    }
}
