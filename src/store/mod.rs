//! The activation store: the activations of one model at one hook over one data set, or rows from elsewhere,
//! on disk.
//!
//! Written once by [`StoreWriter`], then immutable and read by any number of processes through [`Store`],
//! which maps the files and so shares them through the page cache. It knows nothing of models or text: rows
//! of numbers go in, rows of numbers come out. Start with [`Store`].
//!
//! # Layout, format version 1
//!
//! ```text
//! <stores>/<key>/             key: first 16 hex digits of the hash of the identity
//!   header.json               sealed JSON (below): identity, label, shape, counts, per-file length and BLAKE3
//!   train-00000.bin …         rows as raw little-endian numbers, row after row, nothing else
//!   eval.safetensors          the held-out part: tokens, activations, losses (see `held_out.rs`)
//!   stats.safetensors         mean vector and covariance, float64 (see `stats.rs`)
//!   truth.safetensors         the true features of toy data (see `truth.rs`)
//! <stores>/<key>.partial/     the same while it is being built, with manifest.json instead of header.json
//! <stores>/<key>.lock         empty; its lock says who uses the store, its mtime when it was last used
//! ```
//!
//! A sealed file is pretty-printed JSON whose first field `checksum` holds the BLAKE3 of the file's own
//! bytes with these 64 digits set to `0`. Version and magic word are looked at before the seal, so that a
//! later version may be sealed otherwise.
//!
//! # The shuffle
//!
//! All sequences are put into one random order (a function of the seed and their number), that order is cut
//! into shards of `shuffle_buffer_rows` rows rounded down to whole sequences, and the rows of a shard are put
//! into a random order (a function of the seed and the shard's index). So a row's neighbours are rows of
//! random sequences of the whole data set, memory is bounded by one shard, and a killed build needs nothing
//! but the index of the first missing shard to go on.
//!
//! # Crashes
//!
//! Every file is written under a temporary name, synced and renamed, then its folder is synced. A shard
//! counts once the manifest names it, and the manifest is replaced after the shard is on disk. The folder
//! gets its final name after everything in it is on disk. Whatever the moment of a crash, `<key>/` is absent
//! or whole, and `<key>.partial/` lists only shards that are whole; they are checked again before use.

mod error;
mod identity;

mod header;
mod held_out;
mod stats;
mod truth;

mod convert;
mod disk;
mod lock;
mod mapped;
mod order;

mod manage;
mod manifest;
mod reader;
mod shard;
mod writer;

pub use error::StoreError;
pub use header::{FORMAT_VERSION, FileEntry, ShardEntry, StoreHeader};
pub use held_out::{EvalPart, EvalView};
pub use identity::{ModelIdentity, SourceIdentity, StoreIdentity, StoreLabel, hash_files};
pub use lock::UseGuard;
pub use manage::{
    StoreContent, StoreInfo, StoreState, VerifyReport, list, remove, verify, verify_with_progress,
};
pub use order::BatchOrder;
pub use reader::Store;
pub use shard::ShardPlan;
pub use stats::{STATS_ROWS, Stats};
pub use truth::{TruthPart, TruthView};
pub use writer::{StoreWriter, WriterStart};
