//! The rows of one shard on their way to disk: shuffled, converted, measured, hashed.

use super::{
    convert::{self, Encoder},
    disk::NewFile,
    error::StoreError,
    identity::StoreIdentity,
    order::row_order,
};
use crate::trial::StoreDtype;

/// A shard that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardPlan {
    /// Which shard.
    pub index: usize,
    /// Indices of the training sequences whose rows make it up, in the order in which they are to be given.
    pub sequences: Vec<usize>,
}

/// Writes the rows of a shard in their shuffled order; returns the sum of their norms as stored.
pub(super) fn write_rows(
    file: &mut NewFile,
    identity: &StoreIdentity,
    width: usize,
    plan: &ShardPlan,
    rows: &[f32],
) -> Result<f64, StoreError> {
    const BLOCK_NUMBERS: usize = 1 << 18;
    let order = row_order(identity.shuffle_seed, plan.index, rows.len() / width);
    let block_rows = (BLOCK_NUMBERS / width).max(1);
    let mut given = Vec::with_capacity(block_rows * width);
    let mut stored = Vec::new();
    let mut encoder = Encoder::new(identity.dtype);
    let mut norm_sum = 0.0;
    for block in order.chunks(block_rows) {
        given.clear();
        for &row in block {
            let first = row as usize * width;
            given.extend_from_slice(&rows[first..first + width]);
        }
        let bytes = encoder.encode(&given);
        stored.resize(given.len(), 0.0);
        convert::decode(identity.dtype, bytes, &mut stored);
        for (row_stored, &row) in stored.chunks_exact(width).zip(block) {
            let norm = squared_norm(row_stored).sqrt();
            if !norm.is_finite() {
                let first = row as usize * width;
                return Err(not_finite(
                    identity,
                    plan,
                    row as usize,
                    row_stored,
                    &rows[first..first + width],
                ));
            }
            norm_sum += norm;
        }
        file.write(bytes)?;
    }
    Ok(norm_sum)
}

/// Sum of squares in float64, in eight interleaved sums so that it need not wait for each addition.
fn squared_norm(row: &[f32]) -> f64 {
    let mut sums = [0_f64; 8];
    let (chunks, rest) = row.as_chunks::<8>();
    for chunk in chunks {
        for (sum, &value) in sums.iter_mut().zip(chunk) {
            *sum += f64::from(value) * f64::from(value);
        }
    }
    for (sum, &value) in sums.iter_mut().zip(rest) {
        *sum += f64::from(value) * f64::from(value);
    }
    sums.iter().sum()
}

/// Explains a row that has no norm: was it given so, or did it overflow on conversion?
fn not_finite(
    identity: &StoreIdentity,
    plan: &ShardPlan,
    row: usize,
    stored: &[f32],
    given: &[f32],
) -> StoreError {
    let dimension = stored
        .iter()
        .position(|value| !value.is_finite())
        .expect("invariant: squares of finite float32 sum to a finite float64");
    let value = given[dimension];
    let sequence = plan.sequences[row / identity.context_size()];
    let position = row % identity.context_size();
    if !value.is_finite() {
        return StoreError::NotFinite { value, sequence, position, dimension };
    }
    let dtype = match identity.dtype {
        StoreDtype::Float32 => "float32",
        StoreDtype::Float16 => "float16",
        StoreDtype::Bfloat16 => "bfloat16",
    };
    StoreError::Overflow { value, sequence, position, dimension, dtype }
}
