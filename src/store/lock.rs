//! `<key>.lock`: who builds, uses or removes a store.
//!
//! A build and a removal hold the lock alone, trials share it. The operating system frees it when its holder
//! dies. The file is empty, lies beside the store so that it exists before the store does, and its time of
//! modification is the time of last use.

use super::error::StoreError;
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::ErrorKind,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

/// While this lives, the store is not removed. See [`super::Store::mark_used`].
#[derive(Debug)]
#[must_use = "the store is protected only while the guard lives"]
pub struct UseGuard {
    /// Absent where the stores folder cannot be written to, so that nobody can remove the store either.
    _lock: Option<StoreLock>,
}

/// How to lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Alone,
    Shared,
}

/// Whether to wait for the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    Wait,
    Try,
}

/// A held lock.
#[derive(Debug)]
pub(super) struct StoreLock {
    file: File,
    path: PathBuf,
}

/// The lock file of a store.
pub(super) fn lock_path(stores: &Path, key: &str) -> PathBuf {
    stores.join(format!("{key}.lock"))
}

impl StoreLock {
    /// Takes the lock; `None` when somebody else has it and we are not to wait.
    pub(super) fn take(
        stores: &Path,
        key: &str,
        mode: Mode,
        patience: Patience,
    ) -> Result<Option<Self>, StoreError> {
        let path = lock_path(stores, key);
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(StoreError::io("open", &path))?;
            if !lock(&file, mode, patience).map_err(StoreError::io("lock", &path))? {
                return Ok(None);
            }
            // Between opening and locking, a removal may have unlinked the file: then this lock protects
            // nothing and the next one to come would make and lock another file.
            if is_still_at(&file, &path).map_err(StoreError::io("read", &path))? {
                return Ok(Some(Self { file, path }));
            }
        }
    }

    /// Notes the time of last use. Failing that is no reason to fail the caller.
    pub(super) fn touch(&self) {
        if let Err(error) = self.file.set_modified(SystemTime::now()) {
            tracing::debug!("cannot note the use of a store in `{}`: {error}", self.path.display());
        }
    }

    /// Removes the lock file; whoever waits for it notices and makes a new one.
    pub(super) fn remove(self) -> Result<(), StoreError> {
        fs::remove_file(&self.path).map_err(StoreError::io("remove", &self.path))
    }
}

impl Drop for StoreLock {
    /// Unlocks, which closing the file alone does not do while anybody has a copy of it: a process that is being
    /// started by another thread has one until it runs its own program.
    fn drop(&mut self) {
        if let Err(error) = self.file.unlock() {
            tracing::debug!("cannot unlock `{}`: {error}", self.path.display());
        }
    }
}

/// Shares the lock of a store with other users and notes the use.
pub(super) fn share(stores: &Path, key: &str) -> Result<UseGuard, StoreError> {
    match StoreLock::take(stores, key, Mode::Shared, Patience::Wait) {
        Ok(lock) => {
            if let Some(lock) = &lock {
                lock.touch();
            }
            Ok(UseGuard { _lock: lock })
        }
        Err(StoreError::Io { error, path, .. })
            if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) =>
        {
            tracing::debug!("using a store without its lock `{}`: {error}", path.display());
            Ok(UseGuard { _lock: None })
        }
        Err(error) => Err(error),
    }
}

/// Whether anybody holds the lock. The answer may be out of date when it arrives: for display only.
pub(super) fn is_held(stores: &Path, key: &str) -> bool {
    let Ok(file) = File::open(lock_path(stores, key)) else { return false };
    match file.try_lock() {
        Ok(()) => {
            // Not left to closing the file, for the reason that a lock's `drop` has.
            if let Err(error) = file.unlock() {
                tracing::debug!("cannot unlock the lock of store {key}: {error}");
            }
            false
        }
        Err(error) => matches!(error, TryLockError::WouldBlock),
    }
}

fn lock(file: &File, mode: Mode, patience: Patience) -> std::io::Result<bool> {
    if patience == Patience::Try {
        let outcome = match mode {
            Mode::Alone => file.try_lock(),
            Mode::Shared => file.try_lock_shared(),
        };
        return match outcome {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        };
    }
    loop {
        let outcome = match mode {
            Mode::Alone => file.lock(),
            Mode::Shared => file.lock_shared(),
        };
        match outcome {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => return other.map(|()| true),
        }
    }
}

fn is_still_at(file: &File, path: &Path) -> std::io::Result<bool> {
    let ours = file.metadata()?;
    match fs::metadata(path) {
        Ok(theirs) => Ok((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "0123456789abcdef";

    fn take(stores: &Path, mode: Mode) -> Option<StoreLock> {
        StoreLock::take(stores, KEY, mode, Patience::Try).unwrap()
    }

    #[test]
    fn one_alone_or_many_shared() {
        let dir = tempfile::tempdir().unwrap();
        let alone = take(dir.path(), Mode::Alone).unwrap();
        assert!(take(dir.path(), Mode::Alone).is_none() && take(dir.path(), Mode::Shared).is_none());
        assert!(is_held(dir.path(), KEY));
        drop(alone);
        assert!(!is_held(dir.path(), KEY));
        let first = share(dir.path(), KEY).unwrap();
        let second = share(dir.path(), KEY).unwrap();
        assert!(take(dir.path(), Mode::Alone).is_none());
        drop((first, second));
        assert!(take(dir.path(), Mode::Alone).is_some());
    }

    /// A process being started holds copies of all open files until it runs its own program.
    #[test]
    fn a_copy_of_the_file_does_not_keep_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let held = take(dir.path(), Mode::Alone).unwrap();
        let copy = held.file.try_clone().unwrap();
        assert!(take(dir.path(), Mode::Shared).is_none());
        drop(held);
        assert!(!is_held(dir.path(), KEY));
        assert!(take(dir.path(), Mode::Alone).is_some());
        drop(copy);
    }

    #[test]
    fn a_lock_whose_file_was_removed_meanwhile_is_not_taken_for_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = lock_path(dir.path(), KEY);
        let held = take(dir.path(), Mode::Alone).unwrap();
        let stale = File::open(&path).unwrap();
        assert!(is_still_at(&stale, &path).unwrap());
        held.remove().unwrap();
        assert!(!is_still_at(&stale, &path).unwrap());
        let _next = take(dir.path(), Mode::Alone).unwrap();
        assert!(!is_still_at(&stale, &path).unwrap(), "another file of the same name");
    }
}
