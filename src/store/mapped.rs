//! The shards of a store as one long table of rows.

use super::{convert, disk, error::StoreError, header::ShardEntry};
use crate::trial::StoreDtype;
use memmap2::Mmap;
use std::path::Path;

/// Mapped shards, their lengths checked.
#[derive(Debug)]
pub(super) struct MappedRows {
    shards: Vec<Mmap>,
    /// First row of each shard, and after the last the number of rows.
    starts: Vec<u64>,
    width: usize,
    dtype: StoreDtype,
}

impl MappedRows {
    /// Maps the shards, whose entries agree with width and number format.
    pub(super) fn open<'a>(
        folder: &Path,
        shards: impl Iterator<Item = &'a ShardEntry>,
        width: usize,
        dtype: StoreDtype,
    ) -> Result<Self, StoreError> {
        let mut mapped = Self { shards: Vec::new(), starts: vec![0], width, dtype };
        for shard in shards {
            mapped.shards.push(disk::map(folder, &shard.entry)?);
            mapped.starts.push(mapped.rows() + shard.rows);
        }
        Ok(mapped)
    }

    pub(super) fn rows(&self) -> u64 {
        *self.starts.last().expect("invariant: starts has one element more than shards")
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// Reads `out.len() / width` consecutive rows, over the ends of shards, and from the end of the last
    /// shard on at the first again.
    pub(super) fn read(&self, start: u64, out: &mut [f32]) {
        assert!(out.len().is_multiple_of(self.width), "invariant: whole rows are read");
        let row_bytes = self.width * self.dtype.bytes();
        let mut row = start % self.rows();
        let mut rest = out;
        while !rest.is_empty() {
            let shard = self.starts.partition_point(|&first| first <= row) - 1;
            let here = (self.starts[shard + 1] - row).min((rest.len() / self.width) as u64);
            let first = (row - self.starts[shard]) as usize * row_bytes;
            let (now, later) = rest.split_at_mut(here as usize * self.width);
            convert::decode(self.dtype, &self.shards[shard][first..first + here as usize * row_bytes], now);
            rest = later;
            row = (row + here) % self.rows();
        }
    }
}
