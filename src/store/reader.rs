//! Reading a whole store. Nothing here writes, and nothing is copied but the rows asked for.

use super::{
    disk,
    error::StoreError,
    header::{HEADER_FILE, StoreHeader},
    held_out::{EvalShape, EvalView},
    identity::check_key,
    lock::{self, UseGuard},
    manifest::partial_folder,
    mapped::MappedRows,
    order::BatchOrder,
    stats::Stats,
    truth::TruthView,
};
use memmap2::Mmap;
use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

/// A whole store, mapped read-only. Opening checks the header with its seal and the length of every file; the
/// content of the files is checked by [`super::verify`] alone, because that reads all of them.
///
/// As with any mapped file, a disk that fails while rows are read ends the process with a signal.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
    header: StoreHeader,
    rows: MappedRows,
    eval: Mmap,
    stats: Mmap,
    truth: Option<Mmap>,
}

impl Store {
    /// Opens the store of this key.
    pub fn open(stores: &Path, key: &str) -> Result<Self, StoreError> {
        check_key(key)?;
        let dir = stores.join(key);
        let partial = partial_folder(stores, key);
        if !dir.exists() && partial.exists() {
            return Err(StoreError::Incomplete { dir: partial });
        }
        let store = Self::open_dir(&dir)?;
        if store.header.key != key {
            let path = dir.join(HEADER_FILE);
            return Err(StoreError::KeyMismatch { path, found: store.header.key, expected: key.to_owned() });
        }
        Ok(store)
    }

    /// Opens the store in this folder, whatever the folder's name.
    pub fn open_dir(dir: &Path) -> Result<Self, StoreError> {
        let header = read_header(dir)?;
        let rows = MappedRows::open(dir, header.shards.iter(), header.width, header.dtype)?;
        let eval = disk::map(dir, &header.eval)?;
        let stats = disk::map(dir, &header.stats)?;
        let truth = header.truth.as_ref().map(|entry| disk::map(dir, entry)).transpose()?;
        Ok(Self { dir: dir.to_path_buf(), header, rows, eval, stats, truth })
    }

    /// What the store says about itself.
    pub fn header(&self) -> &StoreHeader {
        &self.header
    }

    /// The store's folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Training rows.
    pub fn rows(&self) -> u64 {
        self.header.rows
    }

    /// Activation width.
    pub fn width(&self) -> usize {
        self.header.width
    }

    /// Reads `out.len() / width` consecutive rows as float32, from row `start` on; after the last row comes
    /// the first again.
    ///
    /// # Panics
    /// When `out` does not hold whole rows.
    pub fn read_rows(&self, start: u64, out: &mut [f32]) {
        self.rows.read(start, out);
    }

    /// Reads the batch of a step; `out` holds (batch, width).
    ///
    /// # Panics
    /// When `out` has another size.
    pub fn read_batch(&self, order: &BatchOrder, step: u64, out: &mut [f32]) {
        assert_eq!(out.len(), order.batch() * self.width(), "invariant: out holds one batch");
        self.rows.read(order.start(step), out);
    }

    /// The held-out part.
    pub fn eval(&self) -> Result<EvalView<'_>, StoreError> {
        let shape = EvalShape {
            sequences: self.header.eval_sequences,
            context_size: self.header.identity.context_size(),
            width: self.header.width,
            of_model: self.header.identity.is_of_model(),
        };
        EvalView::parse(&self.dir.join(&self.header.eval.file), &self.eval, shape)
    }

    /// Statistics of the training rows.
    pub fn stats(&self) -> Result<Stats, StoreError> {
        Stats::parse(&self.dir.join(&self.header.stats.file), &self.stats, self.width())
    }

    /// The true features, where they are known.
    pub fn truth(&self) -> Result<Option<TruthView<'_>>, StoreError> {
        let (Some(entry), Some(bytes)) = (&self.header.truth, &self.truth) else { return Ok(None) };
        TruthView::parse(&self.dir.join(&entry.file), bytes, self.width(), self.header.eval_sequences)
            .map(Some)
    }

    /// Notes that the store is used now and keeps it from being removed while the guard lives.
    pub fn mark_used(&self) -> Result<UseGuard, StoreError> {
        let (stores, name) = place(&self.dir);
        let guard = lock::share(&stores, &name)?;
        if !self.dir.join(HEADER_FILE).exists() {
            return Err(StoreError::Missing { dir: self.dir.clone() });
        }
        Ok(guard)
    }
}

/// The stores folder and the name that a store's folder has in it.
pub(super) fn place(dir: &Path) -> (PathBuf, String) {
    let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    (dir.parent().map(Path::to_path_buf).unwrap_or_default(), name)
}

/// Reads and checks the header of a whole store.
pub(super) fn read_header(dir: &Path) -> Result<StoreHeader, StoreError> {
    let path = dir.join(HEADER_FILE);
    match fs::read(&path) {
        Ok(bytes) => StoreHeader::parse(&path, &bytes),
        Err(error) if error.kind() == ErrorKind::NotFound && !dir.exists() => {
            Err(StoreError::Missing { dir: dir.to_path_buf() })
        }
        Err(error) => Err(StoreError::Io { action: "read", path, error }),
    }
}
