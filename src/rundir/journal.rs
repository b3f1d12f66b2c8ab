//! The journal on disk: one writer, held by a lock, every line synced before its event counts as happened.

use super::{Replayed, RunDir, RunDirError, RunState, read_text, replay};
use crate::{
    event::{Event, JournalLine},
    failpoint,
};
use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{Seek, SeekFrom, Write},
    path::PathBuf,
    time::Duration,
};

/// The journal, open for appending. While it lives, the run folder belongs to this process.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    /// Released by the operating system when the process ends, however it ends.
    _lock: File,
}

/// Who coordinates a run folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Host name.
    pub host: String,
    /// Process id.
    pub pid: String,
}

/// How often the lock is tried: `status` of another terminal holds it for an instant when it looks.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(25);

impl Journal {
    /// Takes the run folder, making it if needed, and replays its journal. A torn last line is cut off.
    ///
    /// # Errors
    /// Another process holds the folder, or the journal is damaged.
    pub fn open(run: &RunDir, host: &str, pid: u32) -> Result<(Self, RunState), RunDirError> {
        std::fs::create_dir_all(run.root()).map_err(RunDirError::io("create the folder", run.root()))?;
        let lock = take_lock(run, host, pid)?;
        let path = run.events();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(RunDirError::io("open", &path))?;
        let bytes = std::fs::read(&path).map_err(RunDirError::io("read", &path))?;
        let Replayed { state, whole_bytes } =
            replay(&bytes).map_err(|source| RunDirError::Journal { path: path.clone(), source })?;
        if whole_bytes < bytes.len() {
            tracing::warn!(
                "{}: the last line was cut off by a crash; {} bytes dropped",
                path.display(),
                bytes.len() - whole_bytes
            );
            file.set_len(whole_bytes as u64).map_err(RunDirError::io("truncate", &path))?;
            file.sync_all().map_err(RunDirError::io("sync", &path))?;
        }
        file.seek(SeekFrom::End(0)).map_err(RunDirError::io("seek in", &path))?;
        if bytes.is_empty() {
            let folder = File::open(run.root()).map_err(RunDirError::io("open", run.root()))?;
            folder.sync_all().map_err(RunDirError::io("sync", run.root()))?;
        }
        Ok((Self { path, file, _lock: lock }, state))
    }

    /// Appends one event and syncs. When this returns, the event has happened.
    ///
    /// # Errors
    /// The disk is full or gone. What was written of the line is taken back as far as possible.
    pub fn append(&mut self, at_unix_secs: f64, event: &Event) -> Result<(), RunDirError> {
        let line = JournalLine { at_unix_secs, event: event.clone() };
        let mut bytes = serde_json::to_vec(&line).expect("invariant: events have no keys but strings");
        bytes.push(b'\n');
        failpoint::hit("journal: before a line");
        let before = self.file.stream_position().map_err(RunDirError::io("seek in", &self.path))?;
        if let Err(error) = self.write(&bytes) {
            // A part of a line must not stay before later lines. If this fails too, the disk is beyond help
            // and the first error says more.
            if self.file.set_len(before).and_then(|()| self.file.seek(SeekFrom::End(0))).is_err() {
                tracing::error!("{}: a cut-off line could not be taken back", self.path.display());
            }
            return Err(RunDirError::io("append to", &self.path)(error));
        }
        failpoint::hit("journal: after a line");
        Ok(())
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if failpoint::armed() {
            let (first, rest) = bytes.split_at(bytes.len() / 2);
            self.file.write_all(first)?;
            failpoint::hit("journal: half a line");
            self.file.write_all(rest)?;
        } else {
            self.file.write_all(bytes)?;
        }
        self.file.sync_data()
    }
}

fn take_lock(run: &RunDir, host: &str, pid: u32) -> Result<File, RunDirError> {
    let path = run.lock();
    // Not truncated on opening: the file may belong to somebody else until it is locked.
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(RunDirError::io("open", &path))?;
    for attempt in 1.. {
        match lock.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if attempt < LOCK_TRIES => std::thread::sleep(LOCK_PAUSE),
            Err(TryLockError::WouldBlock) => {
                let Holder { host, pid } = written_holder(run)?;
                return Err(RunDirError::Locked { root: run.root().to_owned(), host, pid });
            }
            Err(TryLockError::Error(source)) => return Err(RunDirError::io("lock", &path)(source)),
        }
    }
    lock.set_len(0)
        .and_then(|()| lock.write_all(format!("{host} {pid}\n").as_bytes()))
        .map_err(RunDirError::io("write", &path))?;
    Ok(lock)
}

/// Who holds the run folder now, if anybody does.
pub fn holder(run: &RunDir) -> Result<Option<Holder>, RunDirError> {
    let path = run.lock();
    let lock = match File::open(&path) {
        Ok(lock) => lock,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(RunDirError::io("open", &path)(error)),
    };
    match lock.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => written_holder(run).map(Some),
        Err(TryLockError::Error(source)) => Err(RunDirError::io("lock", &path)(source)),
    }
}

fn written_holder(run: &RunDir) -> Result<Holder, RunDirError> {
    let text = read_text(&run.lock())?.unwrap_or_default();
    let mut words = text.split_whitespace().map(str::to_owned);
    let mut next = || words.next().unwrap_or_else(|| "(unknown)".to_owned());
    Ok(Holder { host: next(), pid: next() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rundir::TrialPhase;
    use crate::trial::{TrialId, TrialStatus};

    fn ended(name: &str) -> Event {
        Event::TrialEnded { id: TrialId(name.to_owned()), status: TrialStatus::Done, reason: None, secs: 1.0 }
    }

    #[test]
    fn a_second_coordinator_is_refused_and_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(dir.path().join("run"));
        assert_eq!(holder(&run).unwrap(), None);
        let (first, _) = Journal::open(&run, "here", 7).unwrap();
        let error = Journal::open(&run, "there", 8).unwrap_err().to_string();
        assert!(error.contains("process 7 on here"), "{error}");
        assert_eq!(holder(&run).unwrap(), Some(Holder { host: "here".to_owned(), pid: "7".to_owned() }));
        drop(first);
        assert_eq!(holder(&run).unwrap(), None);
        Journal::open(&run, "there", 8).unwrap();
    }

    #[test]
    fn a_torn_line_is_cut_off_before_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::new(dir.path());
        let (mut journal, _) = Journal::open(&run, "h", 1).unwrap();
        journal.append(1.0, &ended("a")).unwrap();
        journal.append(2.0, &ended("b")).unwrap();
        drop(journal);
        let bytes = std::fs::read(run.events()).unwrap();
        std::fs::write(run.events(), &bytes[..bytes.len() - 5]).unwrap();
        let (mut journal, state) = Journal::open(&run, "h", 1).unwrap();
        assert_eq!(state.trials.len(), 1);
        journal.append(3.0, &ended("c")).unwrap();
        drop(journal);
        let (_, state) = Journal::open(&run, "h", 1).unwrap();
        assert_eq!(state.trials.keys().map(|id| id.0.as_str()).collect::<Vec<_>>(), ["a", "c"]);
        assert!(matches!(state.trials.values().next().unwrap().phase, TrialPhase::Ended { .. }));
    }
}
