//! A folder that is replaced as a whole or not at all.
//!
//! The new content is written beside the old one as `<name>.new` and made durable, the old one steps aside
//! as `<name>.old`, the new one takes its name, the old one goes. Whenever the program dies, one of the
//! three is whole; [`candidates`] lists them in the order in which a reader should try.

use crate::failpoint;
use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// Replaces `folder` by what `write` puts into the new folder it is given.
pub(crate) fn replace<E: From<io::Error>>(
    folder: &Path,
    write: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let (new, old) = (beside(folder, ".new"), beside(folder, ".old"));
    remove(&new)?;
    fs::create_dir_all(&new)?;
    write(&new)?;
    failpoint::hit("folder: written");
    for entry in fs::read_dir(&new)? {
        File::open(entry?.path())?.sync_all()?;
    }
    sync_folder(&new)?;
    if folder.exists() {
        remove(&old)?;
        fs::rename(folder, &old)?;
        failpoint::hit("folder: the old one stepped aside");
    }
    fs::rename(&new, folder)?;
    failpoint::hit("folder: the new one has its name");
    if let Some(parent) = folder.parent() {
        sync_folder(parent)?;
    }
    remove(&old)?;
    Ok(())
}

/// Where the whole content can be, best first: the folder itself, then what an interrupted
/// [`replace`] left.
pub(crate) fn candidates(folder: &Path) -> [PathBuf; 3] {
    [folder.to_owned(), beside(folder, ".new"), beside(folder, ".old")]
}

/// Removes the folder and whatever an interrupted [`replace`] left beside it.
pub(crate) fn remove_all(folder: &Path) -> io::Result<()> {
    candidates(folder).iter().try_for_each(|path| remove(path))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
        _ => Ok(()),
    }
}

fn beside(folder: &Path, suffix: &str) -> PathBuf {
    let mut name = folder.file_name().map_or_else(OsString::new, OsString::from);
    name.push(suffix);
    folder.with_file_name(name)
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder)?.sync_all()
}
