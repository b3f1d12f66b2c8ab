//! Files that appear whole or not at all, and checks of the ones that are there.

use super::{error::StoreError, header::FileEntry};
use crate::failpoint;
use memmap2::Mmap;
use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
};

/// Ending of files that are being written.
const TEMPORARY: &str = "tmp";

/// A file that is hashed while it is written and gets its name when it is complete and on disk.
pub(super) struct NewFile {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl NewFile {
    pub(super) fn create(path: PathBuf) -> Result<Self, StoreError> {
        let mut temporary = path.clone().into_os_string();
        temporary.push(".");
        temporary.push(TEMPORARY);
        let temporary = PathBuf::from(temporary);
        let file = File::create(&temporary).map_err(StoreError::io("create", &temporary))?;
        failpoint::hit("store: file created");
        Ok(Self { file, temporary, path, hasher: blake3::Hasher::new(), bytes: 0 })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.file.write_all(bytes).map_err(StoreError::io("write", &self.temporary))?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    /// Syncs and renames the file, then syncs its folder.
    pub(super) fn finish(self) -> Result<FileEntry, StoreError> {
        self.file.sync_all().map_err(StoreError::io("sync", &self.temporary))?;
        failpoint::hit("store: file without its name");
        fs::rename(&self.temporary, &self.path).map_err(StoreError::io("rename to", &self.path))?;
        sync_folder_of(&self.path)?;
        failpoint::hit("store: file named");
        let name = self.path.file_name().expect("invariant: a new file has a name");
        Ok(FileEntry {
            file: name.to_string_lossy().into_owned(),
            bytes: self.bytes,
            blake3: self.hasher.finalize().to_hex().to_string(),
        })
    }
}

/// Writes a whole file at once.
pub(super) fn write_file(path: PathBuf, bytes: &[u8]) -> Result<FileEntry, StoreError> {
    let mut file = NewFile::create(path)?;
    file.write(bytes)?;
    file.finish()
}

/// Makes the names in the folder of `path` durable.
pub(super) fn sync_folder_of(path: &Path) -> Result<(), StoreError> {
    let folder = path.parent().expect("invariant: files of a store lie in a folder");
    // A bare name lies in the current folder, whose own name here would be empty.
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(StoreError::io("sync", folder))
}

/// Removes what an interrupted write left behind.
pub(super) fn remove_temporaries(folder: &Path) -> Result<(), StoreError> {
    for entry in fs::read_dir(folder).map_err(StoreError::io("list", folder))? {
        let path = entry.map_err(StoreError::io("list", folder))?.path();
        if path.extension().is_some_and(|ending| ending == TEMPORARY) {
            fs::remove_file(&path).map_err(StoreError::io("remove", &path))?;
        }
    }
    Ok(())
}

/// Maps a file of a store after a look at its length.
pub(super) fn map(folder: &Path, entry: &FileEntry) -> Result<Mmap, StoreError> {
    let path = folder.join(&entry.file);
    let file = File::open(&path).map_err(StoreError::io("open", &path))?;
    let found = file.metadata().map_err(StoreError::io("read", &path))?.len();
    if found != entry.bytes {
        return Err(StoreError::Length { path, found, expected: entry.bytes });
    }
    // SAFETY: a named file of a store is never written to or cut again: writers write under temporary names
    // and rename, and `remove` only unlinks, which leaves mappings intact.
    unsafe { Mmap::map(&file) }.map_err(StoreError::io("map", &path))
}

/// Checks length and hash of a file; `on_bytes` hears of every piece read.
pub(super) fn check(
    folder: &Path,
    entry: &FileEntry,
    on_bytes: &mut dyn FnMut(u64),
) -> Result<(), StoreError> {
    const PIECE_BYTES: usize = 1 << 24;
    let mapped = map(folder, entry)?;
    let mut hasher = blake3::Hasher::new();
    for piece in mapped.chunks(PIECE_BYTES) {
        hasher.update(piece);
        on_bytes(piece.len() as u64);
    }
    let found = hasher.finalize().to_hex();
    if found.as_str() != entry.blake3 {
        return Err(StoreError::Checksum {
            path: folder.join(&entry.file),
            found: found.to_string(),
            expected: entry.blake3.clone(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_name_only_when_it_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("train-00000.bin");
        let mut file = NewFile::create(path.clone()).unwrap();
        file.write(b"half").unwrap();
        drop(file);
        assert!(!path.exists());
        remove_temporaries(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

        let entry = write_file(path.clone(), b"whole").unwrap();
        assert_eq!((entry.file.as_str(), entry.bytes), ("train-00000.bin", 5));
        assert_eq!(entry.blake3, blake3::hash(b"whole").to_hex().to_string());
        check(dir.path(), &entry, &mut |_| ()).unwrap();
        fs::write(&path, b"whale").unwrap();
        assert!(matches!(check(dir.path(), &entry, &mut |_| ()), Err(StoreError::Checksum { .. })));
        fs::write(&path, b"whole.").unwrap();
        assert!(matches!(
            check(dir.path(), &entry, &mut |_| ()),
            Err(StoreError::Length { found: 6, expected: 5, .. })
        ));
    }

    #[test]
    fn a_full_disk_is_an_error_with_the_path() {
        // Linux has a device that is always full.
        let full = Path::new("/dev/full");
        if !full.exists() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(full, dir.path().join("a.tmp")).unwrap();
        let mut file = NewFile::create(dir.path().join("a")).unwrap();
        let message = file.write(b"x").unwrap_err().to_string();
        assert!(message.contains("cannot write `") && message.contains("a.tmp"), "{message}");
        assert!(message.contains("No space left on device"), "{message}");
    }
}
