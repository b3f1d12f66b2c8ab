//! Random orders as pure functions of seeds: of sequences and rows when a store is written, of batches when
//! it is read. Start with [`BatchOrder`].
//!
//! The generator and the shuffle are spelt out here (ChaCha8 keyed by BLAKE3, Fisher-Yates) instead of taken
//! from a library that may change them, because stores on disk and trials that resume depend on every bit.

use super::error::StoreError;
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::Mutex;

/// The order in which a trial sees the rows of a store: a pure function of (rows, batch, data seed).
///
/// A batch is a run of consecutive rows, which were shuffled when they were written. In every epoch the rows
/// are cut into batches from a random offset on, wrapping at the end, and the batches are taken in a random
/// order. `rows % batch` rows are left out of an epoch, other ones in each.
#[derive(Debug)]
pub struct BatchOrder {
    rows: u64,
    batch: usize,
    data_seed: u64,
    /// The epoch used last: saves making the permutation anew at every step, changes no result.
    cache: Mutex<Option<Epoch>>,
}

#[derive(Debug)]
struct Epoch {
    index: u64,
    offset: u64,
    order: Vec<u32>,
}

impl BatchOrder {
    /// Makes the order; refuses an empty batch and one larger than the store.
    pub fn new(rows: u64, batch: usize, data_seed: u64) -> Result<Self, StoreError> {
        if batch == 0 {
            return Err(StoreError::EmptyBatch);
        }
        if rows < batch as u64 {
            return Err(StoreError::TooFewRows { rows, batch });
        }
        Ok(Self { rows, batch, data_seed, cache: Mutex::new(None) })
    }

    /// Rows of a batch.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Whole batches in one epoch.
    pub fn batches_per_epoch(&self) -> u64 {
        self.rows / self.batch as u64
    }

    /// First row of the batch of this step, counted from 0. The batch is the rows
    /// `start .. start + batch`, modulo the number of rows.
    pub fn start(&self, step: u64) -> u64 {
        let index = step / self.batches_per_epoch();
        let within = (step % self.batches_per_epoch()) as usize;
        // The cache is replaced whole, so a panic elsewhere cannot have left it half made.
        let mut cache = self.cache.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let epoch = match cache.take() {
            Some(epoch) if epoch.index == index => epoch,
            _ => self.epoch(index),
        };
        let start = (epoch.offset + u64::from(epoch.order[within]) * self.batch as u64) % self.rows;
        *cache = Some(epoch);
        start
    }

    fn epoch(&self, index: u64) -> Epoch {
        let mut rng = rng("saesweep store: order of batches, version 1", &[self.data_seed, index]);
        let offset = below(&mut rng, self.rows);
        Epoch { index, offset, order: permutation(&mut rng, self.batches_per_epoch() as usize) }
    }
}

/// The order in which the sequences of the data go into the shards.
pub(super) fn sequence_order(shuffle_seed: u64, sequences: usize) -> Vec<u32> {
    permutation(&mut rng("saesweep store: order of sequences, version 1", &[shuffle_seed]), sequences)
}

/// The order of the rows of one shard: place i of the shard holds row `order[i]` of its plan.
pub(super) fn row_order(shuffle_seed: u64, shard: usize, rows: usize) -> Vec<u32> {
    permutation(&mut rng("saesweep store: order of rows, version 1", &[shuffle_seed, shard as u64]), rows)
}

/// A generator for one purpose: streams of different purposes or numbers have nothing in common.
fn rng(purpose: &'static str, numbers: &[u64]) -> ChaCha8Rng {
    let material: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    ChaCha8Rng::from_seed(blake3::derive_key(purpose, &material))
}

/// Fisher-Yates, from the end.
fn permutation(rng: &mut ChaCha8Rng, len: usize) -> Vec<u32> {
    let len = u32::try_from(len).expect("invariant: sequences, rows of a shard and batches fit 32 bits");
    let mut order: Vec<u32> = (0..len).collect();
    for last in (1..order.len()).rev() {
        order.swap(last, below(rng, last as u64 + 1) as usize);
    }
    order
}

/// A number below `bound` by a widening product; its bias is below `bound` / 2^64.
fn below(rng: &mut ChaCha8Rng, bound: u64) -> u64 {
    ((u128::from(rng.next_u64()) * u128::from(bound)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn an_epoch_covers_all_rows_but_the_remainder(
            batch in 1_usize..40, extra in 0_u64..200, seed: u64, epoch in 0_u64..5,
        ) {
            let rows = batch as u64 + extra;
            let order = BatchOrder::new(rows, batch, seed).unwrap();
            let per_epoch = order.batches_per_epoch();
            let mut seen = vec![0_u32; rows as usize];
            for step in epoch * per_epoch..(epoch + 1) * per_epoch {
                let start = order.start(step);
                prop_assert!(start < rows);
                for row in start..start + batch as u64 {
                    seen[(row % rows) as usize] += 1;
                }
            }
            prop_assert!(seen.iter().all(|&times| times <= 1));
            let left_out = seen.iter().filter(|&&times| times == 0).count() as u64;
            prop_assert_eq!(left_out, rows % batch as u64);
        }

        #[test]
        fn the_order_of_asking_does_not_matter(
            rows in 10_u64..500, seed: u64, steps in prop::collection::vec(0_u64..1000, 1..20),
        ) {
            let shared = BatchOrder::new(rows, 10, seed).unwrap();
            for step in steps {
                prop_assert_eq!(shared.start(step), BatchOrder::new(rows, 10, seed).unwrap().start(step));
            }
        }
    }

    fn starts(rows: u64, batch: usize, seed: u64, steps: u64) -> Vec<u64> {
        let order = BatchOrder::new(rows, batch, seed).unwrap();
        (0..steps).map(|step| order.start(step)).collect()
    }

    #[test]
    fn seeds_and_epochs_differ() {
        assert_ne!(starts(1000, 10, 0, 100), starts(1000, 10, 1, 100));
        let two = starts(1000, 10, 0, 200);
        assert_ne!(two[..100], two[100..]);
        assert_ne!(two[0] % 10, two[100] % 10, "the offset of the cut moves too");
    }

    #[test]
    fn the_order_is_pinned() {
        // Trials that resume and results that are compared depend on these numbers: never change them.
        assert_eq!(starts(100, 10, 3, 12), [57, 87, 47, 7, 27, 37, 97, 67, 17, 77, 20, 10]);
        assert_eq!(
            [sequence_order(5, 8), row_order(5, 2, 8)],
            [[0, 6, 4, 2, 1, 7, 3, 5], [1, 4, 2, 3, 5, 6, 0, 7]]
        );
    }

    #[test]
    fn too_small_stores_are_refused() {
        let message = BatchOrder::new(5, 6, 0).unwrap_err().to_string();
        assert_eq!(message, "the store has 5 rows, fewer than one batch of 6");
        assert!(BatchOrder::new(5, 5, 0).is_ok());
        assert!(matches!(BatchOrder::new(5, 0, 0), Err(StoreError::EmptyBatch)));
    }

    #[test]
    fn permutations_are_uniform() {
        // 24 orders of 4 elements, 4800 draws: each is expected 200 times, standard deviation 14.
        let mut counts = std::collections::BTreeMap::new();
        for seed in 0..4800 {
            *counts.entry(sequence_order(seed, 4)).or_insert(0_u32) += 1;
        }
        assert_eq!(counts.len(), 24);
        assert!(counts.values().all(|&count| (130..270).contains(&count)), "{counts:?}");
    }
}
