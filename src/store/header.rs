//! `header.json`: what a whole store says about itself, and the sealed JSON that holds it.
//!
//! [`StoreHeader::parse`] is the only way from bytes to a header, and checks in an order in which each step
//! may rely on the ones before: JSON, magic word, version, seal, fields, consistency.

use super::{
    error::StoreError,
    identity::{StoreIdentity, StoreLabel},
};
use crate::trial::StoreDtype;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::path::Path;

/// Version of the store format that this program writes, and the newest that it reads. Raise it when a file
/// changes its layout or a field its meaning, and keep a sample of the old version in the tests.
pub const FORMAT_VERSION: u32 = 1;

/// First word of every header and manifest.
pub(super) const MAGIC: &str = "saesweep-store";

/// File names inside a store.
pub(super) const HEADER_FILE: &str = "header.json";
pub(super) const EVAL_FILE: &str = "eval.safetensors";
pub(super) const STATS_FILE: &str = "stats.safetensors";
pub(super) const TRUTH_FILE: &str = "truth.safetensors";

/// Name of a shard's file.
pub(super) fn shard_file(index: usize) -> String {
    format!("train-{index:05}.bin")
}

/// The header of a whole store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoreHeader {
    /// The seal; the first field, because its place in the file is fixed.
    pub checksum: String,
    /// `saesweep-store`.
    pub magic: String,
    /// Format version.
    pub version: u32,
    /// Version of the program that finished the store.
    pub saesweep: String,
    /// Name of the store, [`StoreIdentity::key`].
    pub key: String,
    /// Names for people.
    pub label: StoreLabel,
    /// What made the store.
    pub identity: StoreIdentity,
    /// Number format of the training rows.
    pub dtype: StoreDtype,
    /// Activation width.
    pub width: usize,
    /// Training sequences.
    pub sequences: usize,
    /// Training rows: sequences times context size.
    pub rows: u64,
    /// Mean L2 norm of the training rows as stored.
    pub mean_norm: f64,
    /// Held-out sequences.
    pub eval_sequences: usize,
    /// The held-out part.
    pub eval: FileEntry,
    /// The statistics.
    pub stats: FileEntry,
    /// The true features, where they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truth: Option<FileEntry>,
    /// The training rows, in order.
    pub shards: Vec<ShardEntry>,
}

/// One file of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Name inside the store's folder.
    pub file: String,
    /// Length.
    pub bytes: u64,
    /// Hash of its bytes, 64 hexadecimal digits.
    pub blake3: String,
}

/// One shard of training rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// The file.
    #[serde(flatten)]
    pub entry: FileEntry,
    /// Rows in it.
    pub rows: u64,
    /// Sum of the L2 norms of its rows as stored.
    pub norm_sum: f64,
}

/// What is looked at before anything else may be relied on.
#[derive(Deserialize)]
struct Probe {
    magic: String,
    version: u32,
}

impl StoreHeader {
    /// The bytes of `header.json`.
    pub(super) fn render(&self) -> Vec<u8> {
        seal(self)
    }

    /// Reads and checks the bytes of a header; `path` is for messages.
    pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, StoreError> {
        let header: Self = unseal(path, bytes)?;
        header.check(path)?;
        Ok(header)
    }

    /// Bytes of all files that the header names.
    pub fn bytes(&self) -> u64 {
        self.files().map(|entry| entry.bytes).sum()
    }

    /// Every file that the header names.
    pub(super) fn files(&self) -> impl Iterator<Item = &FileEntry> {
        self.shards.iter().map(|shard| &shard.entry).chain([&self.eval, &self.stats]).chain(&self.truth)
    }

    /// Holds the header's statements against each other.
    fn check(&self, path: &Path) -> Result<(), StoreError> {
        let expect = |what: String, found: String, expected: String| {
            if found == expected {
                return Ok(());
            }
            Err(StoreError::HeaderInconsistent { path: path.to_path_buf(), what, found, expected })
        };
        let count = |number: Option<u64>| number.map_or("more than 2^64".to_owned(), |n| n.to_string());
        expect(
            "identity.format_version".to_owned(),
            self.identity.format_version.to_string(),
            self.version.to_string(),
        )?;
        expect("key".to_owned(), self.key.clone(), self.identity.key())?;
        expect("dtype".to_owned(), format!("{:?}", self.dtype), format!("{:?}", self.identity.dtype))?;
        let rows = (self.sequences as u64).checked_mul(self.identity.context_size() as u64);
        expect("rows".to_owned(), self.rows.to_string(), count(rows))?;
        if self.rows == 0 || self.width == 0 || self.shards.is_empty() {
            expect("number of rows, width or shards".to_owned(), "0".to_owned(), "at least 1".to_owned())?;
        }
        let mut total = Some(0_u64);
        for (index, shard) in self.shards.iter().enumerate() {
            let name = shard_file(index);
            expect(format!("file of shard {index}"), shard.entry.file.clone(), name.clone())?;
            // A shard of no rows would break the look-up of rows: it is expected to have bytes, and has none.
            let bytes = u64::max(shard.rows, 1)
                .checked_mul(self.width as u64)
                .and_then(|numbers| numbers.checked_mul(self.dtype.bytes() as u64));
            expect(format!("length of {name}"), shard.entry.bytes.to_string(), count(bytes))?;
            total = total.and_then(|sum| sum.checked_add(shard.rows));
        }
        expect("rows of all shards".to_owned(), count(total), self.rows.to_string())?;
        expect("file of the held-out part".to_owned(), self.eval.file.clone(), EVAL_FILE.to_owned())?;
        expect("file of the statistics".to_owned(), self.stats.file.clone(), STATS_FILE.to_owned())?;
        let truth = self.truth.as_ref().map_or(TRUTH_FILE, |truth| &truth.file);
        expect("file of the true features".to_owned(), truth.to_owned(), TRUTH_FILE.to_owned())
    }
}

/// A sealed file starts with this, then come the digits of the seal.
const SEAL_PREFIX: &[u8] = b"{\n  \"checksum\": \"";
const SEAL_DIGITS: usize = 64;

/// The digits of a file that is not sealed yet.
pub(super) fn no_seal() -> String {
    "0".repeat(SEAL_DIGITS)
}

/// Renders a value as sealed JSON. Its first field must be `checksum`, set to [`no_seal`].
pub(super) fn seal<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("invariant: a header is plain data");
    bytes.push(b'\n');
    let digits = SEAL_PREFIX.len()..SEAL_PREFIX.len() + SEAL_DIGITS;
    assert!(
        bytes.starts_with(SEAL_PREFIX) && bytes[digits.clone()].iter().all(|&digit| digit == b'0'),
        "invariant: a sealed value starts with an empty seal"
    );
    let hash = blake3::hash(&bytes).to_hex();
    bytes[digits].copy_from_slice(hash.as_bytes());
    bytes
}

/// Reads sealed JSON; `path` is for messages.
pub(super) fn unseal<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, StoreError> {
    let unreadable = |reason: String| StoreError::HeaderUnreadable { path: path.to_path_buf(), reason };
    let probe: Probe = serde_json::from_slice(bytes).map_err(|error| unreadable(error.to_string()))?;
    if probe.magic != MAGIC {
        return Err(unreadable(format!("magic word is `{}`, expected `{MAGIC}`", probe.magic)));
    }
    if probe.version > FORMAT_VERSION {
        return Err(StoreError::VersionTooNew {
            path: path.to_path_buf(),
            found: probe.version,
            supported: FORMAT_VERSION,
        });
    }
    if probe.version == 0 {
        return Err(unreadable("there is no format version 0".to_owned()));
    }
    let digits = SEAL_PREFIX.len()..SEAL_PREFIX.len() + SEAL_DIGITS;
    if !bytes.starts_with(SEAL_PREFIX) || bytes.len() < digits.end {
        return Err(unreadable("its first field is not a checksum".to_owned()));
    }
    let mut blank = bytes.to_vec();
    blank[digits.clone()].fill(b'0');
    let found = blake3::hash(&blank).to_hex();
    if found.as_bytes() != &bytes[digits.clone()] {
        return Err(StoreError::Checksum {
            path: path.to_path_buf(),
            found: found.to_string(),
            expected: String::from_utf8_lossy(&bytes[digits]).into_owned(),
        });
    }
    serde_json::from_slice(bytes).map_err(|error| unreadable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::{super::identity::sample_identity, *};

    fn sample() -> StoreHeader {
        let entry = |file: &str, bytes| FileEntry { file: file.to_owned(), bytes, blake3: no_seal() };
        let identity = sample_identity();
        StoreHeader {
            checksum: no_seal(),
            magic: MAGIC.to_owned(),
            version: FORMAT_VERSION,
            saesweep: "0.0.0".to_owned(),
            key: identity.key(),
            label: StoreLabel { model: "m".to_owned(), hook: "h".to_owned(), dataset: "d".to_owned() },
            dtype: identity.dtype,
            identity,
            width: 3,
            sequences: 3,
            rows: 12,
            mean_norm: 0.1 + 0.2,
            eval_sequences: 1,
            eval: entry(EVAL_FILE, 100),
            stats: entry(STATS_FILE, 100),
            truth: None,
            shards: vec![
                ShardEntry { entry: entry("train-00000.bin", 8 * 12), rows: 8, norm_sum: 1.0 },
                ShardEntry { entry: entry("train-00001.bin", 4 * 12), rows: 4, norm_sum: 1.0 },
            ],
        }
    }

    fn parse(bytes: &[u8]) -> Result<StoreHeader, StoreError> {
        StoreHeader::parse(Path::new("header.json"), bytes)
    }

    #[test]
    fn comes_back_as_it_was() {
        let parsed = parse(&sample().render()).unwrap();
        assert_ne!(parsed.checksum, no_seal());
        assert_eq!(StoreHeader { checksum: no_seal(), ..parsed }, sample());
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_an_error() {
        let bytes = sample().render();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[at] ^= 1 << bit;
                assert!(parse(&flipped).is_err(), "bit {bit} of byte {at}");
            }
            assert!(parse(&bytes[..at]).is_err(), "{at} bytes");
        }
    }

    #[test]
    fn contradictions_are_named() {
        let check = |change: &dyn Fn(&mut StoreHeader), message: &str| {
            let mut header = sample();
            change(&mut header);
            let error = parse(&header.render()).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        check(&|h| h.version = 2, "store format version 2, this program reads versions up to 1");
        check(&|h| h.version = 0, "no format version 0");
        check(&|h| h.magic = "other".to_owned(), "magic word is `other`, expected `saesweep-store`");
        check(&|h| h.rows = 13, "rows is 13, expected 12");
        check(&|h| h.identity.shuffle_seed = 8, "key is");
        check(&|h| h.dtype = StoreDtype::Float16, "dtype is Float16, expected Float32");
        check(&|h| h.width = 4, "length of train-00000.bin is 96, expected 128");
        check(&|h| h.width = usize::MAX, "more than 2^64");
        check(&|h| h.sequences = usize::MAX, "more than 2^64");
        check(&|h| h.shards.swap(0, 1), "file of shard 0 is train-00001.bin, expected train-00000.bin");
        check(&|h| h.shards.truncate(1), "rows of all shards is 8, expected 12");
        check(&|h| h.eval.file = "../x".to_owned(), "file of the held-out part is ../x");
    }
}
