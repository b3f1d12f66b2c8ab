//! What can go wrong with a store, each with the file and the values needed to act.

use std::path::{Path, PathBuf};

/// An error of the store. Every message is complete by itself: causes are part of it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such store.
    #[error("no activation store at `{}`", dir.display())]
    Missing {
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// The store is being built, or its build was interrupted.
    #[error("the activation store at `{}` is not complete: it is being built, or its build was interrupted and continues with the next run that needs it", dir.display())]
    Incomplete {
        /// The partial folder.
        dir: PathBuf,
    },
    /// Not the form of a store key, so not a folder to look into (or to delete).
    #[error("`{key}` is not a store key: expected 16 hexadecimal digits")]
    BadKey {
        /// What was given.
        key: String,
    },
    /// The operating system refused; a full disk arrives here.
    #[error("cannot {action} `{}`: {error}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// The cause.
        error: std::io::Error,
    },
    /// The header is not the header of a store, or not readable as one.
    #[error("`{}` is not a readable store header: {reason}", path.display())]
    HeaderUnreadable {
        /// The header file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The store was written by a later program.
    #[error("`{}` has store format version {found}, this program reads versions up to {supported}", path.display())]
    VersionTooNew {
        /// The header file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version this program knows.
        supported: u32,
    },
    /// Two statements of the header contradict each other.
    #[error("`{}` contradicts itself: {what} is {found}, expected {expected}", path.display())]
    HeaderInconsistent {
        /// The header file.
        path: PathBuf,
        /// Which quantity.
        what: String,
        /// What it says.
        found: String,
        /// What follows from the rest of the header.
        expected: String,
    },
    /// The folder holds another store than its name or the caller says.
    #[error("`{}` belongs to store {found}, expected {expected}", path.display())]
    KeyMismatch {
        /// The header file.
        path: PathBuf,
        /// Its key.
        found: String,
        /// The key asked for.
        expected: String,
    },
    /// A file is shorter or longer than the header says.
    #[error("`{}` has {found} bytes, expected {expected}", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// Its length.
        found: u64,
        /// The length in the header.
        expected: u64,
    },
    /// A file has the right length and the wrong bytes.
    #[error("`{}` is damaged: BLAKE3 {found}, expected {expected}", path.display())]
    Checksum {
        /// The file.
        path: PathBuf,
        /// Hash of its bytes.
        found: String,
        /// The hash written when it was made.
        expected: String,
    },
    /// The held-out part or the statistics do not hold what they must.
    #[error("`{}` is not usable: {reason}", path.display())]
    BadPart {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The store is locked by a build or by running trials.
    #[error("store {key} is in use by a running build or trial (lock `{}`)", path.display())]
    InUse {
        /// Its key.
        key: String,
        /// The lock file.
        path: PathBuf,
    },
    /// There is nothing to store.
    #[error("cannot make a store without {what}")]
    Empty {
        /// What is missing.
        what: &'static str,
    },
    /// The shuffle buffer is too small for the amount of data.
    #[error(
        "a shuffle buffer of {shuffle_buffer_rows} rows would cut {rows} rows into {shards} shards, at most {most} are allowed; raise `store.shuffle_buffer_rows`"
    )]
    TooManyShards {
        /// The setting.
        shuffle_buffer_rows: usize,
        /// Rows of the store.
        rows: u64,
        /// Shards that would be needed.
        shards: usize,
        /// The limit.
        most: usize,
    },
    /// The caller's data have another size than announced.
    #[error("{what} has {found} values, expected {expected}")]
    Shape {
        /// Which data.
        what: String,
        /// Their size.
        found: usize,
        /// The size they must have.
        expected: usize,
    },
    /// The identity names a format that this program does not write.
    #[error("cannot write store format version {found}, this program writes version {expected}")]
    VersionNotWritten {
        /// The version asked for.
        found: u32,
        /// [`super::FORMAT_VERSION`].
        expected: u32,
    },
    /// A shard is written that is not the next one.
    #[error("shard {found} was written out of turn, expected {expected}")]
    OutOfTurn {
        /// The shard's index.
        found: usize,
        /// The index due, or that none is.
        expected: String,
    },
    /// The store was finished before all its shards were written.
    #[error("the store lacks {missing} of its {shards} shards")]
    Unfinished {
        /// Shards not yet written.
        missing: usize,
        /// Shards in all.
        shards: usize,
    },
    /// The model produced NaN or an infinity.
    #[error(
        "the model's activation is {value} in sequence {sequence} at position {position}, dimension {dimension}"
    )]
    NotFinite {
        /// The value.
        value: f32,
        /// Index of the sequence in the data.
        sequence: usize,
        /// Position in the sequence.
        position: usize,
        /// Dimension of the activation.
        dimension: usize,
    },
    /// An activation overflows the number format of the store.
    #[error(
        "the activation {value} in sequence {sequence} at position {position}, dimension {dimension} does not fit into {dtype}; set `store.dtype` to bfloat16 or float32"
    )]
    Overflow {
        /// The value.
        value: f32,
        /// Index of the sequence in the data.
        sequence: usize,
        /// Position in the sequence.
        position: usize,
        /// Dimension of the activation.
        dimension: usize,
        /// The number format.
        dtype: &'static str,
    },
    /// A batch of no rows was asked for.
    #[error("a batch must have at least one row")]
    EmptyBatch,
    /// The store is smaller than one batch.
    #[error("the store has {rows} rows, fewer than one batch of {batch}")]
    TooFewRows {
        /// Rows of the store.
        rows: u64,
        /// Rows of a batch.
        batch: usize,
    },
}

impl StoreError {
    /// Makes the adapter for `map_err` that adds what was tried and on which path.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |error| Self::Io { action, path, error }
    }
}
