//! The one dense product this module needs: rows of a batch or of a weight matrix times a (D, D) matrix.
//!
//! Rows go in fixed chunks, so that the result does not depend on how many threads share them.

use crate::kernels::Pool;
use std::sync::Mutex;

/// Rows of one task. Part of the result's definition: the product's inner blocking depends on it.
const CHUNK_ROWS: usize = 64;

/// A number type that `gemm` multiplies.
pub(super) trait Float: Copy + Send + Sync + 'static {
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
}

impl Float for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
}

impl Float for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
}

/// Which side of the matrix a row meets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// `row · M`.
    Plain,
    /// `row · Mᵀ`, that is `M · row` for a column.
    Transposed,
}

/// `out = rows · M` (or `Mᵀ`) with `rows` (R, D), `matrix` (D, D) and `out` (R, D), all row-major.
pub(super) fn rows_times<T: Float>(
    pool: &Pool,
    rows: &[T],
    matrix: &[T],
    side: Side,
    d: usize,
    out: &mut [T],
) {
    assert!(rows.len() == out.len() && matrix.len() == d * d && rows.len().is_multiple_of(d));
    // A lock per chunk hands each task its own part of `out`; none is ever waited for.
    let chunks: Vec<Mutex<&mut [T]>> = out.chunks_mut(CHUNK_ROWS * d).map(Mutex::new).collect();
    pool.run(chunks.len(), &|task| {
        let mut out = chunks[task].lock().expect("invariant: a chunk is locked once");
        let start = task * CHUNK_ROWS * d;
        product(&rows[start..start + out.len()], matrix, side, d, &mut out);
    });
}

/// The product of one chunk on the calling thread.
fn product<T: Float>(rows: &[T], matrix: &[T], side: Side, d: usize, out: &mut [T]) {
    let n = rows.len() / d;
    let (matrix_cs, matrix_rs) = match side {
        Side::Plain => (1, d as isize),
        Side::Transposed => (d as isize, 1),
    };
    // SAFETY: `rows` and `out` hold n·d numbers, `matrix` d·d, all row-major with the strides given here;
    // `out` is borrowed mutably, so it overlaps neither.
    unsafe {
        gemm::gemm(
            n,
            d,
            d,
            out.as_mut_ptr(),
            1,
            d as isize,
            false,
            rows.as_ptr(),
            1,
            d as isize,
            matrix.as_ptr(),
            matrix_cs,
            matrix_rs,
            T::ZERO,
            T::ONE,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_equal_the_written_out_product() {
        let (d, n) = (5, 70);
        let rows: Vec<f64> = (0..n * d).map(|i| ((i * 7) % 11) as f64 - 5.0).collect();
        let matrix: Vec<f64> = (0..d * d).map(|i| ((i * 5) % 13) as f64 - 6.0).collect();
        for (side, threads) in [(Side::Plain, 1), (Side::Transposed, 3)] {
            let mut out = vec![0.0; n * d];
            rows_times(&Pool::new(threads), &rows, &matrix, side, d, &mut out);
            for r in 0..n {
                for c in 0..d {
                    let want: f64 = (0..d)
                        .map(|k| {
                            let m = if side == Side::Plain { matrix[k * d + c] } else { matrix[c * d + k] };
                            rows[r * d + k] * m
                        })
                        .sum();
                    assert!((out[r * d + c] - want).abs() < 1e-9);
                }
            }
        }
    }
}
