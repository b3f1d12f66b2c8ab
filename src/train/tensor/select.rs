//! The k largest of every row, or of a whole matrix, on any device.
//!
//! Candle sorts rows in the shared memory of one block, which ends at some thousand columns on CUDA, and leaves equal
//! values in any order. So the k-th largest value is found by bisection instead: a candidate in the middle, a count of
//! what reaches it, and so on until no number lies between the bounds. That takes comparisons and sums only, as many
//! rounds for any width, and serves the choice over a batch, too. Middles are geometric first, which halves the
//! range of exponents, then arithmetic, which halves the mantissas that are left: 34 rounds end at one number. Which
//! of the values equal to it are kept, the first ones, running sums say. Nothing waits for the device in between.
//!
//! For each row's k largest, a first choice among maxima of blocks spares the bisection most columns: the k blocks of
//! largest maxima hold them.

use super::values::filled;
use candle_core::{D, DType, Result, Tensor};

/// Values beyond count as this large; NaN, too, so that a broken step shows in its loss.
const LARGEST: f64 = 1e38;

/// Less than all values that are compared, and not to be chosen.
const NOTHING: f32 = -2e38;

/// More than all values that are compared.
pub(super) const MORE: f32 = 2e38;

/// Rounds with geometric middles. From `[2^-126, 2^128]`, 9 leave a ratio of `2^0.5` at most,
const GEOMETRIC_ROUNDS: usize = 9;

/// of which the mantissas' 24 bits and one for rounding are left.
const ROUNDS: usize = GEOMETRIC_ROUNDS + 25;

/// Columns whose running sums are one product.
const RUN: usize = 128;

/// A block that is smaller spares nothing.
const LEAST_BLOCK: usize = 4;

/// Whose largest values are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Among {
    /// Those of each row.
    Row,
    /// Those of all rows together.
    Rows,
}

/// The values as they are compared.
pub(super) fn comparable(values: &Tensor) -> Result<Tensor> {
    let is_nan = values.ne(values)?;
    is_nan.where_cond(&filled(values, LARGEST as f32)?, values)?.clamp(-LARGEST as f32, LARGEST as f32)
}

/// 1 for each of the `k` largest of `order` (R, N), which are [`comparable`], else 0. Of equal values those in
/// earlier rows win, then those in earlier columns. `k` is at least 1 and at most the number of values.
pub(super) fn largest(order: &Tensor, k: usize, among: Among) -> Result<Tensor> {
    let limit = limit(order, k, among)?;
    let above = order.broadcast_gt(&limit)?;
    let room = (count(&above, among)?.neg()? + k as f64)?;
    let equal = order.broadcast_eq(&limit)?.to_dtype(DType::F32)?;
    let room = match among {
        Among::Row => room,
        Among::Rows => {
            let in_row = equal.sum(1)?.unsqueeze(0)?;
            room.broadcast_sub(&(running_sums(&in_row)? - in_row)?)?.t()?.contiguous()?
        }
    };
    let first = running_sums(&equal)?.broadcast_le(&room)?.to_dtype(DType::F32)?;
    above.to_dtype(DType::F32)? + (equal * first)?
}

/// The columns (R, k) of each row's `k` largest, by the same rules, in rising order.
pub(super) fn largest_columns(order: &Tensor, k: usize) -> Result<Tensor> {
    let (rows, n) = order.dims2()?;
    let block = (n as f64 / k as f64).sqrt() as usize;
    if block < LEAST_BLOCK {
        return columns(&largest(order, k, Among::Row)?, k);
    }
    let blocks = n.div_ceil(block);
    let padded = match blocks * block - n {
        0 => order.clone(),
        rest => Tensor::cat(&[order, &Tensor::full(NOTHING, (rows, rest), order.device())?], 1)?,
    };
    let maxima = padded.reshape((rows, blocks, block))?.max(2)?;
    // Where maxima are equal, earlier blocks are enough: every one taken has such a value to give.
    let best = columns(&largest(&maxima, k, Among::Row)?, k)?;
    let first = (best.to_dtype(DType::F32)? * block as f64)?.unsqueeze(2)?;
    let inside = numbers(block, order)?.reshape((1, 1, block))?;
    let candidates =
        first.broadcast_add(&inside)?.reshape((rows, k * block))?.to_dtype(DType::U32)?.contiguous()?;
    let chosen = largest(&padded.contiguous()?.gather(&candidates, 1)?, k, Among::Row)?;
    candidates.gather(&columns(&chosen, k)?, 1)
}

/// The column (R, 1) of each row's largest; of equal values the first. Candle's `argmax` leaves that open.
pub(super) fn first_largest(order: &Tensor) -> Result<Tensor> {
    let n = order.dim(1)?;
    let is_largest = order.broadcast_eq(&order.max_keepdim(1)?)?;
    let columns = numbers(n, order)?.unsqueeze(0)?.broadcast_as(order.shape())?;
    let none = filled(order, n as f32)?;
    is_largest.where_cond(&columns, &none)?.min_keepdim(1)?.to_dtype(DType::U32)
}

/// The `k`-th largest value: (R, 1) of each row, or (1, 1) of all.
fn limit(order: &Tensor, k: usize, among: Among) -> Result<Tensor> {
    let enough = |mask: &Tensor| -> Result<Tensor> {
        let count = count(mask, among)?;
        count.ge(&filled(&count, k as f32)?)
    };
    // The limit's sign first; the bounds are of its magnitude.
    let is_positive = enough(&order.gt(0_f32)?)?;
    let is_zero_enough = enough(&order.ge(0_f32)?)?;
    let like = is_positive.to_dtype(DType::F32)?;
    let sign = ((&like * 2.0)? - 1.0)?;
    let (mut low, mut high) = (filled(&like, f32::MIN_POSITIVE)?, filled(&like, MORE)?);
    for round in 0..ROUNDS {
        let middle = if round < GEOMETRIC_ROUNDS {
            (low.sqrt()? * high.sqrt()?)?
        } else {
            (&low + ((&high - &low)? * 0.5)?)?
        };
        // More values reach a small positive number and a large negative one.
        let reached = enough(&order.broadcast_ge(&(&middle * &sign)?)?)?;
        let is_low = reached.eq(&is_positive)?;
        low = is_low.where_cond(&middle, &low)?;
        high = is_low.where_cond(&high, &middle)?;
    }
    let limit = (is_positive.where_cond(&low, &high)? * sign)?;
    let not_negative = is_positive.where_cond(&limit, &filled(&limit, 0.0)?)?;
    is_zero_enough.where_cond(&not_negative, &limit)
}

/// How many flags are up: (R, 1) in each row, or (1, 1) in all. Exact to 2^24 in a row.
fn count(flags: &Tensor, among: Among) -> Result<Tensor> {
    let rows = flags.to_dtype(DType::F32)?.sum_keepdim(1)?;
    if among == Among::Row { Ok(rows) } else { rows.sum_keepdim(0) }
}

/// The columns (R, k) in which a mask of exactly `k` ones a row has them, in rising order.
fn columns(mask: &Tensor, k: usize) -> Result<Tensor> {
    let (rows, n) = mask.dims2()?;
    // Each column goes to the place that its rank is, and the others to one place more.
    let ranks = (running_sums(mask)? - 1.0)?;
    let places = mask.ne(0_f32)?.where_cond(&ranks, &filled(mask, k as f32)?)?;
    let places = places.t()?.contiguous()?.to_dtype(DType::U32)?;
    let numbers = numbers(n, mask)?.unsqueeze(1)?.broadcast_as((n, rows))?.contiguous()?;
    let found = Tensor::zeros((k + 1, rows), DType::F32, mask.device())?.scatter_add(&places, &numbers, 0)?;
    found.narrow(0, 0, k)?.t()?.contiguous()?.to_dtype(DType::U32)
}

/// 0, 1, ... below n: exact in single precision up to 2^24, as a row has to be.
fn numbers(n: usize, like: &Tensor) -> Result<Tensor> {
    Tensor::arange(0_u32, n as u32, like.device())?.to_dtype(DType::F32)
}

/// The sum of each value of (R, N) and all before it in its row.
fn running_sums(values: &Tensor) -> Result<Tensor> {
    let (rows, n) = values.dims2()?;
    let below = |n| Tensor::triu2(n, DType::F32, values.device());
    if n <= RUN {
        return values.contiguous()?.matmul(&below(n)?);
    }
    let runs = n.div_ceil(RUN);
    let padded = values.pad_with_zeros(D::Minus1, 0, runs * RUN - n)?.contiguous()?;
    let inside = padded.reshape((rows * runs, RUN))?.matmul(&below(RUN)?)?.reshape((rows, runs, RUN))?;
    let totals = inside.narrow(2, RUN - 1, 1)?.squeeze(2)?.contiguous()?;
    let before = (running_sums(&totals)? - totals)?.unsqueeze(2)?;
    inside.broadcast_add(&before)?.reshape((rows, runs * RUN))?.narrow(1, 0, n)?.contiguous()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::reference;
    use candle_core::Device;
    use proptest::prelude::*;

    /// Checks both choices of `values` (R, N) against the reference's, and the columns.
    fn check(values: &[f32], n: usize, k: usize) {
        let wide: Vec<f64> = values.iter().map(|&value| f64::from(value)).collect();
        let rows = values.len() / n;
        let order = comparable(&Tensor::from_slice(values, (rows, n), &Device::Cpu).unwrap()).unwrap();

        let of_row: Vec<Vec<usize>> =
            wide.chunks_exact(n).map(|row| reference::largest(row, k, |_| true)).collect();
        let mask = largest(&order, k, Among::Row).unwrap().to_vec2::<f32>().unwrap();
        let columns = largest_columns(&order, k).unwrap().to_vec2::<u32>().unwrap();
        for ((mask, columns), wanted) in mask.iter().zip(&columns).zip(&of_row) {
            let found: Vec<usize> = (0..n).filter(|&at| mask[at] == 1.0).collect();
            assert_eq!(&found, wanted, "{k} of {n}");
            assert_eq!(mask.iter().filter(|&&flag| flag != 0.0).count(), k);
            let columns: Vec<usize> = columns.iter().map(|&at| at as usize).collect();
            assert_eq!(&columns, wanted, "columns of {k} of {n}");
        }
        let first = first_largest(&order).unwrap().flatten_all().unwrap().to_vec1::<u32>().unwrap();
        for (row, first) in wide.chunks_exact(n).zip(first) {
            assert_eq!(reference::largest(row, 1, |_| true), [first as usize], "the first of {n}");
        }
        for k in [k, k * rows] {
            let mask =
                largest(&order, k, Among::Rows).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let found: Vec<usize> = (0..values.len()).filter(|&at| mask[at] == 1.0).collect();
            assert_eq!(found, reference::largest(&wide, k, |_| true), "{k} of {rows} rows of {n}");
        }
    }

    #[test]
    fn extremes_are_told_apart() {
        let next = |value: f32| f32::from_bits(value.to_bits() + 1);
        let values = [
            -1e38,
            -3.0,
            -next(3.0),
            -1e-37,
            0.0,
            0.0,
            1e-37,
            next(1e-37),
            1.0,
            next(1.0),
            3.0,
            9e37,
            f32::NAN,
            -7e30,
            2.0,
            2.0,
        ];
        for k in 1..=values.len() {
            check(&values, values.len(), k);
        }
        check(&[-1.0, -1.0, -1.0, -1.0], 4, 2);
        check(&[0.0; 6], 3, 2);
    }

    #[test]
    fn wide_rows_are_no_different() {
        let values: Vec<f32> =
            (0_u64..2 * 20_011).map(|at| ((at * 48_271) % 9973) as f32 / 64.0 - 60.0).collect();
        for k in [1, 5, 64, 1000, 20_011] {
            check(&values, 20_011, k);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// A few numbers, so that many are equal, and any numbers.
        #[test]
        fn they_are_those_of_the_reference(
            n in 1_usize..300, rows in 1_usize..5, share in 0.0_f64..1.0, few: bool, seed: u64
        ) {
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) as u32
            };
            let values: Vec<f32> = (0..rows * n)
                .map(|_| if few {
                    (next() % 7) as f32 - 3.0
                } else {
                    // Normal numbers of any exponent from 2^-60 to 2^67.
                    let (sign, exponent, fraction) = (next() % 2, 67 + next() % 128, next() % (1 << 23));
                    f32::from_bits((sign << 31) | (exponent << 23) | fraction)
                })
                .collect();
            check(&values, n, ((share * n as f64) as usize).max(1));
        }
    }
}
