//! `<key>.partial/manifest.json`: what a build has done so far. A shard counts once it is named here.

use super::{
    disk,
    error::StoreError,
    header::{FORMAT_VERSION, MAGIC, ShardEntry, no_seal, seal, unseal},
    identity::{StoreIdentity, StoreLabel},
};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
};

pub(super) const MANIFEST_FILE: &str = "manifest.json";

/// The folder of a store that is being built.
pub(super) fn partial_folder(stores: &Path, key: &str) -> PathBuf {
    stores.join(format!("{key}.partial"))
}

/// A build so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Manifest {
    checksum: String,
    magic: String,
    version: u32,
    pub(super) label: StoreLabel,
    pub(super) identity: StoreIdentity,
    pub(super) width: usize,
    pub(super) sequences: usize,
    /// By index; `None` is yet to be written.
    pub(super) shards: Vec<Option<ShardEntry>>,
}

impl Manifest {
    pub(super) fn new(
        identity: &StoreIdentity,
        label: &StoreLabel,
        width: usize,
        sequences: usize,
        shards: usize,
    ) -> Self {
        Self {
            checksum: no_seal(),
            magic: MAGIC.to_owned(),
            version: FORMAT_VERSION,
            label: label.clone(),
            identity: identity.clone(),
            width,
            sequences,
            shards: vec![None; shards],
        }
    }

    pub(super) fn read(partial: &Path) -> Result<Self, StoreError> {
        let path = partial.join(MANIFEST_FILE);
        let bytes = fs::read(&path).map_err(StoreError::io("read", &path))?;
        let manifest: Self = unseal(&path, &bytes)?;
        Ok(Self { checksum: no_seal(), ..manifest })
    }

    pub(super) fn write(&self, partial: &Path) -> Result<(), StoreError> {
        disk::write_file(partial.join(MANIFEST_FILE), &seal(self)).map(|_entry| ())
    }

    /// Whether a build of `other` can go on from here.
    pub(super) fn fits(&self, other: &Self) -> bool {
        let same = (&self.identity, self.width, self.sequences, self.shards.len());
        same == (&other.identity, other.width, other.sequences, other.shards.len())
    }

    /// Index of the first shard that is yet to be written.
    pub(super) fn next(&self) -> Option<usize> {
        self.shards.iter().position(Option::is_none)
    }
}
