//! Files that are there whole or not at all.

use super::RunDirError;
use crate::failpoint;
use std::{
    fs::{self, File},
    io::Write,
    path::Path,
};

/// Replaces the file at `path` by `bytes`: temporary file beside it, fsync, rename, fsync of the folder.
/// Missing folders are made. Whoever reads sees the old bytes or the new ones, after a crash too.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), RunDirError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(RunDirError::io("create the folder", folder))?;
    let name = path.file_name().expect("invariant: run files have names").to_string_lossy();
    // One name, no random part: a file left by a killed process is overwritten, not collected.
    let temporary = folder.join(format!(".{name}.tmp"));
    let mut file = File::create(&temporary).map_err(RunDirError::io("create", &temporary))?;
    failpoint::hit("write_atomic: created");
    if failpoint::armed() {
        let (first, rest) = bytes.split_at(bytes.len() / 2);
        file.write_all(first).map_err(RunDirError::io("write", &temporary))?;
        failpoint::hit("write_atomic: half written");
        file.write_all(rest).map_err(RunDirError::io("write", &temporary))?;
    } else {
        file.write_all(bytes).map_err(RunDirError::io("write", &temporary))?;
    }
    file.sync_all().map_err(RunDirError::io("sync", &temporary))?;
    failpoint::hit("write_atomic: before the rename");
    fs::rename(&temporary, path).map_err(RunDirError::io("rename to", path))?;
    failpoint::hit("write_atomic: after the rename");
    let folder_file = File::open(folder).map_err(RunDirError::io("open", folder))?;
    folder_file.sync_all().map_err(RunDirError::io("sync", folder))
}

/// Removes a file or a whole folder; that it is not there is fine.
pub fn remove_if_present(path: &Path) -> Result<(), RunDirError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(RunDirError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// The text of a file, `None` when there is no such file.
pub fn read_text(path: &Path) -> Result<Option<String>, RunDirError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(RunDirError::io("read", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole_files_and_makes_folders() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/result.json");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn removing_is_idempotent() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("checkpoint");
        fs::create_dir_all(folder.join("x")).unwrap();
        for _ in 0..2 {
            remove_if_present(&folder).unwrap();
            assert!(!folder.exists());
        }
        assert_eq!(read_text(&folder).unwrap(), None);
    }
}
