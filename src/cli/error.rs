//! Everything that can end a command early, and the exit code it gives.

use super::Exit;
use crate::{
    data::DataError, eval::EvalError, harvest::HarvestError, hub::HubError, model::ModelError,
    report::ReportError, rundir::RunDirError, sae::ExportError, sae::SaeError, sched::SchedError,
    sched::SlotError, source::SourceError, spec::SpecErrors, store::StoreError, table::TableError,
    train::TrainError,
};
use std::path::PathBuf;

/// A command that ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    #[error(transparent)]
    Spec(#[from] SpecErrors),
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error("{0}")]
    Usage(String),
    #[error("cannot read `{}`: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Hub(#[from] HubError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Harvest(#[from] HarvestError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    #[error(transparent)]
    Sched(#[from] SchedError),
    #[error(transparent)]
    Train(#[from] TrainError),
    #[error(transparent)]
    Eval(#[from] EvalError),
    #[error(transparent)]
    Sae(#[from] SaeError),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Report(#[from] ReportError),
    #[error("cannot start the event loop: {0}")]
    Runtime(std::io::Error),
    #[error("cannot print: {0}")]
    Print(std::io::Error),
    /// The user stopped it before any trial ran.
    #[error("interrupted; the same command continues")]
    Interrupted,
}

impl CliError {
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Spec(_) | Self::Slot(_) | Self::Usage(_) => Exit::Usage,
            // The sweep names it, so the sweep is wrong.
            Self::Model(ModelError::UnknownHook { .. }) => Exit::Usage,
            Self::Export(error) if error.is_refusal() => Exit::Usage,
            Self::Interrupted => Exit::Interrupted,
            _ => Exit::Error,
        }
    }
}
