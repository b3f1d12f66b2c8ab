//! What can go wrong between a name on the hub and a file on this machine.

use std::{fmt, path::PathBuf};
use thiserror::Error;

/// What kind of repository a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepoKind {
    /// A language model.
    Model,
    /// A data set.
    Dataset,
}

impl fmt::Display for RepoKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Model => "model",
            Self::Dataset => "data set",
        })
    }
}

/// Why a model or a data set could not be had. No variant ever carries the token.
#[derive(Debug, Error)]
pub enum HubError {
    /// The name is not one the hub could know.
    #[error("`{name}` is not a hub name: {reason} (expected `org/name` or `org/name@revision`)")]
    BadName {
        /// As given.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The hub has no such repository, or does not show it to us.
    #[error("{kind} `{repo}` does not exist on {endpoint}{}", private_hint(*.with_token))]
    NotFound {
        /// Model or data set.
        kind: RepoKind,
        /// `org/name`.
        repo: String,
        /// Address of the hub.
        endpoint: String,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// The repository exists, the revision does not.
    #[error("{kind} `{repo}` has no revision `{revision}` on {endpoint}")]
    RevisionNotFound {
        /// Model or data set.
        kind: RepoKind,
        /// `org/name`.
        repo: String,
        /// Branch, tag or commit asked for.
        revision: String,
        /// Address of the hub.
        endpoint: String,
    },
    /// The hub refuses access: a gated or private repository, or a token that is not valid.
    #[error(
        "{endpoint} refuses access to {kind} `{repo}` (HTTP {status}): accept its licence at {page}, then {}",
        if *.with_token { "check that the token in HF_TOKEN is valid and belongs to the account that did" }
        else { "set HF_TOKEN to a token of the account that did" }
    )]
    Denied {
        /// Model or data set.
        kind: RepoKind,
        /// `org/name`.
        repo: String,
        /// Address of the hub.
        endpoint: String,
        /// Web page of the repository, where the licence is accepted.
        page: String,
        /// 401 or 403.
        status: u16,
        /// Whether a token was sent.
        with_token: bool,
    },
    /// Offline, and the cache lacks something.
    #[error(
        "{kind} `{name}` is not complete in the cache {} and HF_HUB_OFFLINE is set; missing: {}",
        cache_dir.display(), missing.join(", ")
    )]
    NotCached {
        /// Model or data set.
        kind: RepoKind,
        /// The name as given.
        name: String,
        /// Where was looked.
        cache_dir: PathBuf,
        /// What is not there.
        missing: Vec<String>,
    },
    /// The repository lacks the files we can use.
    #[error("{kind} `{name}` has no {wanted}; it has: {}", listed(found))]
    NoUsableFiles {
        /// Model or data set.
        kind: RepoKind,
        /// The name as given.
        name: String,
        /// What was looked for.
        wanted: String,
        /// Files of the repository.
        found: Vec<String>,
    },
    /// A data set has several configurations and none was chosen.
    #[error(
        "data set `{name}` has several configurations ({}); name one as `{repo}/<configuration>`",
        configurations.join(", ")
    )]
    SeveralConfigurations {
        /// The name as given.
        name: String,
        /// `org/name`.
        repo: String,
        /// Their folders.
        configurations: Vec<String>,
    },
    /// A download broke off and could not be resumed. The part that arrived is kept for the next attempt.
    #[error(
        "download of `{file}` broke off at {got} of {expected} bytes after {attempts} attempts: {cause}; \
         run again to continue from there"
    )]
    Incomplete {
        /// Path in the repository.
        file: String,
        /// Bytes on disk.
        got: u64,
        /// Bytes of the whole.
        expected: u64,
        /// Connections that were tried.
        attempts: u32,
        /// How the last one ended.
        cause: String,
    },
    /// The hub could not be reached.
    #[error("{url} cannot be reached: {cause}")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// Why.
        cause: String,
    },
    /// The hub answered with a status that has no better name.
    #[error("{url} answered HTTP {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// The status.
        status: u16,
    },
    /// The hub's answer makes no sense.
    #[error("{url} answered something unexpected: {reason}")]
    Protocol {
        /// What was asked for.
        url: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// There is no home folder to put a cache in.
    #[error("no home folder found; set HF_HOME to the folder that should hold the cache")]
    NoCacheDir,
    /// The cache cannot be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Cache {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

impl HubError {
    pub(crate) fn cache(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Cache { action, path, source }
    }

    /// Whether a complete copy in the cache is a sound answer instead: the hub is down or out of reach, as
    /// opposed to having told us that something is wrong with the request.
    pub(crate) fn is_hub_out_of_reach(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Status { status, .. } => *status == 429 || *status >= 500,
            _ => false,
        }
    }
}

fn private_hint(with_token: bool) -> &'static str {
    if with_token {
        ", or the token in HF_TOKEN has no access to it"
    } else {
        "; if it is private, set HF_TOKEN"
    }
}

/// At most ten file names: enough to see what kind of repository it is.
fn listed(files: &[String]) -> String {
    const SHOWN: usize = 10;
    match files.len() {
        0 => "no files".to_owned(),
        n if n <= SHOWN => files.join(", "),
        n => format!("{} and {} more", files[..SHOWN].join(", "), n - SHOWN),
    }
}
