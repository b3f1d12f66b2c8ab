//! Where everything lies in a run folder. Pure paths; nothing here touches the disk.

use crate::trial::TrialId;
use std::path::{Path, PathBuf};

/// A run folder, `results/<sweep name>/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDir {
    root: PathBuf,
}

impl RunDir {
    /// The run folder at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The sweep file exactly as given.
    pub fn sweep_toml(&self) -> PathBuf {
        self.root.join("sweep.toml")
    }

    /// The sweep after all layers.
    pub fn resolved_toml(&self) -> PathBuf {
        self.root.join("resolved.toml")
    }

    /// What a report needs to know of the last run: plan order, objective, stores, host.
    pub fn run_json(&self) -> PathBuf {
        self.root.join("run.json")
    }

    /// The journal.
    pub fn events(&self) -> PathBuf {
        self.root.join("events.jsonl")
    }

    /// The lock file of the coordinator.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// The folder of all trials.
    pub fn trials(&self) -> PathBuf {
        self.root.join("trials")
    }

    /// The folder of one trial.
    pub fn trial(&self, id: &TrialId) -> TrialDir {
        TrialDir::new(self.trials().join(&id.0))
    }

    /// The folder of the tables.
    pub fn tables(&self) -> PathBuf {
        self.root.join("tables")
    }

    /// The report.
    pub fn report(&self) -> PathBuf {
        self.root.join("report.md")
    }

    /// The folder of the report's figures.
    pub fn figures(&self) -> PathBuf {
        self.root.join("figures")
    }
}

/// The folder of one trial, `trials/<id>/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrialDir {
    root: PathBuf,
}

impl TrialDir {
    /// The trial folder at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The job: identity, store and configuration.
    pub fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    /// Everything the trial's processes printed that is not a message.
    pub fn log(&self) -> PathBuf {
        self.root.join("log.txt")
    }

    /// Held by the trial process, so that no two ever write into one folder.
    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// Training metrics, one JSON object a line.
    pub fn metrics(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    /// The folder of the checkpoint; gone once the trial has its result.
    pub fn checkpoint(&self) -> PathBuf {
        self.root.join("checkpoint")
    }

    /// The verdict, written last of all.
    pub fn result(&self) -> PathBuf {
        self.root.join("result.json")
    }

    /// The trained SAE.
    pub fn sae(&self) -> PathBuf {
        self.root.join("sae")
    }
}
