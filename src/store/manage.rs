//! Looking after stores: what is there, is it intact, away with it.

use super::{
    disk,
    error::StoreError,
    header::HEADER_FILE,
    identity::{StoreLabel, check_key, is_key},
    lock::{self, Mode, Patience, StoreLock, lock_path},
    manifest::{Manifest, partial_folder},
    reader::{Store, place, read_header},
};
use crate::trial::StoreDtype;
use std::{
    ffi::OsStr,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// One store of a stores folder.
#[derive(Debug)]
pub struct StoreInfo {
    /// Its key.
    pub key: String,
    /// Its folder.
    pub dir: PathBuf,
    /// Whole, partial or broken.
    pub state: StoreState,
    /// Bytes of its files.
    pub bytes: u64,
    /// When a trial last used it or a build last finished it.
    pub last_used: Option<SystemTime>,
    /// Whether a build or a trial holds it now.
    pub in_use: bool,
    /// What it holds; `None` when it is broken.
    pub content: Option<StoreContent>,
}

/// What a store holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreContent {
    /// Names for people.
    pub label: StoreLabel,
    /// Training rows (tokens), of a partial store those it will have.
    pub rows: u64,
    /// Activation width.
    pub width: usize,
    /// Number format.
    pub dtype: StoreDtype,
}

/// The state of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreState {
    /// Every file is there with its length.
    Whole,
    /// Being built, or interrupted.
    Partial {
        /// Shards written.
        shards_done: usize,
        /// Shards in all.
        shards: usize,
    },
    /// Not usable, and why.
    Broken(String),
}

/// What [`verify`] found.
#[derive(Debug)]
pub struct VerifyReport {
    /// Files looked at.
    pub files: usize,
    /// Bytes read.
    pub bytes: u64,
    /// One error for each damaged file; each names its file.
    pub problems: Vec<StoreError>,
}

impl VerifyReport {
    /// Whether every byte is as it was written.
    pub fn is_intact(&self) -> bool {
        self.problems.is_empty()
    }
}

/// Lists the stores of a folder by key. A folder that is not there has none.
pub fn list(stores: &Path) -> Result<Vec<StoreInfo>, StoreError> {
    let entries = match fs::read_dir(stores) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(StoreError::io("list", stores)(error)),
    };
    let mut infos = Vec::new();
    for entry in entries {
        let dir = entry.map_err(StoreError::io("list", stores))?.path();
        let Some(key) = dir.file_stem().and_then(OsStr::to_str).filter(|stem| is_key(stem)) else { continue };
        if !dir.is_dir() {
            continue;
        }
        let (state, content) = match dir.extension().and_then(OsStr::to_str) {
            None => inspect_whole(&dir),
            Some("partial") => inspect_partial(&dir),
            Some("removing") => {
                (StoreState::Broken("its removal was interrupted; remove it again".to_owned()), None)
            }
            Some(_) => continue,
        };
        infos.push(StoreInfo {
            key: key.to_owned(),
            state,
            bytes: bytes_in(&dir)?,
            last_used: last_used(stores, key, &dir),
            in_use: lock::is_held(stores, key),
            content,
            dir,
        });
    }
    infos.sort_by(|a, b| a.dir.cmp(&b.dir));
    Ok(infos)
}

fn inspect_whole(dir: &Path) -> (StoreState, Option<StoreContent>) {
    match Store::open_dir(dir) {
        Err(error) => (StoreState::Broken(error.to_string()), None),
        Ok(store) => {
            let header = store.header();
            let content = StoreContent {
                label: header.label.clone(),
                rows: header.rows,
                width: header.width,
                dtype: header.dtype,
            };
            (StoreState::Whole, Some(content))
        }
    }
}

fn inspect_partial(dir: &Path) -> (StoreState, Option<StoreContent>) {
    match Manifest::read(dir) {
        Err(error) => (StoreState::Broken(error.to_string()), None),
        Ok(manifest) => {
            let shards_done = manifest.shards.iter().flatten().count();
            let content = StoreContent {
                rows: (manifest.sequences as u64).saturating_mul(manifest.identity.context_size() as u64),
                label: manifest.label,
                width: manifest.width,
                dtype: manifest.identity.dtype,
            };
            (StoreState::Partial { shards_done, shards: manifest.shards.len() }, Some(content))
        }
    }
}

fn bytes_in(dir: &Path) -> Result<u64, StoreError> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir).map_err(StoreError::io("list", dir))? {
        let entry = entry.map_err(StoreError::io("list", dir))?;
        // A file may vanish under a running build; it then counts as nothing.
        bytes += entry.metadata().map_or(0, |metadata| metadata.len());
    }
    Ok(bytes)
}

fn last_used(stores: &Path, key: &str, dir: &Path) -> Option<SystemTime> {
    let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    modified(&lock_path(stores, key)).or_else(|| modified(&dir.join(HEADER_FILE)))
}

/// Reads every byte of a store and holds it against the checksums.
///
/// # Errors
/// Only when there is no store to look at. Damage of any file, the header included, is in the report.
pub fn verify(dir: &Path) -> Result<VerifyReport, StoreError> {
    verify_with_progress(dir, &mut |_bytes| ())
}

/// As [`verify`]; `on_bytes` hears of every piece read.
pub fn verify_with_progress(dir: &Path, on_bytes: &mut dyn FnMut(u64)) -> Result<VerifyReport, StoreError> {
    if !dir.exists() {
        return Err(StoreError::Missing { dir: dir.to_path_buf() });
    }
    let (_stores, name) = place(dir);
    let path = dir.join(HEADER_FILE);
    let mut report = VerifyReport { files: 1, bytes: 0, problems: Vec::new() };
    let header = match read_header(dir) {
        Ok(header) => header,
        Err(problem) => {
            report.problems.push(problem);
            return Ok(report);
        }
    };
    if is_key(&name) && name != header.key {
        report.problems.push(StoreError::KeyMismatch {
            path,
            found: header.key.clone(),
            expected: name.clone(),
        });
    }
    let mut read = 0;
    for entry in header.files() {
        report.files += 1;
        let outcome = disk::check(dir, entry, &mut |bytes| {
            read += bytes;
            on_bytes(bytes);
        });
        report.problems.extend(outcome.err());
    }
    report.bytes = read;
    if report.is_intact() {
        // The bytes are as they were written; were they also written as they should be?
        let store = Store::open_dir(dir)?;
        report.problems.extend(store.eval().err());
        report.problems.extend(store.stats().err());
        report.problems.extend(store.truth().err());
    }
    Ok(report)
}

/// Removes a store, whole or partial, and its lock. Refuses one that is in use.
pub fn remove(stores: &Path, key: &str) -> Result<(), StoreError> {
    check_key(key)?;
    let removing = stores.join(format!("{key}.removing"));
    let folders = [stores.join(key), partial_folder(stores, key)];
    if !removing.exists() && !folders.iter().any(|folder| folder.exists()) {
        return Err(StoreError::Missing { dir: stores.join(key) });
    }
    let Some(lock) = StoreLock::take(stores, key, Mode::Alone, Patience::Try)? else {
        return Err(StoreError::InUse { key: key.to_owned(), path: lock_path(stores, key) });
    };
    // Renamed first: a removal that is cut short must not leave a store that looks whole.
    if removing.exists() {
        fs::remove_dir_all(&removing).map_err(StoreError::io("remove", &removing))?;
    }
    for folder in folders {
        if folder.exists() {
            fs::rename(&folder, &removing).map_err(StoreError::io("rename", &folder))?;
            fs::remove_dir_all(&removing).map_err(StoreError::io("remove", &removing))?;
        }
    }
    lock.remove()
}
