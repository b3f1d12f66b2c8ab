//! The run folder: everything one sweep produced, as files that any tool can read.
//!
//! The coordinator alone appends to the journal; each trial alone writes its own folder; every file is
//! replaced whole (temporary file, fsync, rename). State is a replay of the journal plus the trials' own
//! files, so a kill at any moment loses no more than the work since the last checkpoint.
//! Start with [`RunDir`], then [`replay`].

mod atomic;
mod journal;
mod layout;
mod records;
mod replay;

pub use atomic::{read_text, remove_if_present, write_atomic};
pub use journal::{Holder, Journal, holder};
pub use layout::{RunDir, TrialDir};
pub use records::{TrialRecord, read_job, read_result, read_results, tail_lines};
pub use replay::{ReplayError, Replayed, RunState, TrialPhase, TrialState, replay};

use std::path::PathBuf;

/// What can go wrong with a run folder.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// The operating system refused.
    #[error("cannot {op} `{}`: {source}", path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Another coordinator has the run folder.
    #[error(
        "the run folder `{}` is in use by process {pid} on {host}; stop that run or wait for it", root.display()
    )]
    Locked {
        /// The run folder.
        root: PathBuf,
        /// Host of the holder.
        host: String,
        /// Process of the holder, as written in the lock file.
        pid: String,
    },
    /// The journal cannot be read.
    #[error("`{}`: {source}", path.display())]
    Journal {
        /// The journal.
        path: PathBuf,
        /// The line and why.
        source: ReplayError,
    },
    /// A file holds something else than expected.
    #[error("`{}` is not a {what}: {detail}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// A file was written by a newer version.
    #[error("`{}` has format version {found}; this version of saesweep reads up to {known}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version known.
        known: u32,
    },
}

impl RunDirError {
    /// Wraps an I/O error with what was tried on which path.
    pub fn io(op: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { op, path, source }
    }
}
