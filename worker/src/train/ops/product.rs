//! Matrix products on slices, one thread each: a step is split over threads by
//! sequences, so that no product waits for another core.
#![allow(unsafe_code)]

/// A matrix in a slice: `rows × columns`, an element at `row * row_step + column * column_step`.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_step: usize,
    column_step: usize,
}

impl<'a> Matrix<'a> {
    /// A row-major matrix whose rows start `row_step` apart.
    pub(super) fn strided(values: &'a [f32], rows: usize, columns: usize, row_step: usize) -> Self {
        assert!(
            rows == 0 || (rows - 1) * row_step + columns <= values.len(),
            "matrix within its slice"
        );
        Self {
            values,
            rows,
            columns,
            row_step,
            column_step: 1,
        }
    }

    /// A row-major matrix without gaps.
    pub(super) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        Self::strided(values, rows, columns, columns)
    }

    /// Rows as columns.
    pub(super) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_step: self.column_step,
            column_step: self.row_step,
            ..self
        }
    }
}

/// `out = left · right`, or `out += left · right` with `add`; rows of `out` start `row_step` apart.
pub(super) fn multiply(left: Matrix, right: Matrix, out: &mut [f32], row_step: usize, add: bool) {
    let (m, n, k) = (left.rows, right.columns, left.columns);
    assert_eq!(k, right.rows, "inner sizes of a product");
    if m == 0 || n == 0 {
        return;
    }
    assert!(
        (m - 1) * row_step + n <= out.len(),
        "product within its slice"
    );
    // SAFETY: both operands were checked against their slices when they were made, the
    // output just now, and `out` is borrowed mutably, so nothing overlaps it.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            row_step as isize,
            add,
            left.values.as_ptr(),
            left.column_step as isize,
            left.row_step as isize,
            right.values.as_ptr(),
            right.column_step as isize,
            right.row_step as isize,
            1.0f32,
            1.0f32,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
