//! A run as data: plain rows, the tables made from them, the frontier and the effect of every axis.
//!
//! Read [`RunData`] first: whoever knows the run folder fills it, everything here and the report start from
//! it. This is the only part, besides the reading of data sets, that knows polars. It draws nothing and
//! words nothing; that is `report`'s part.

mod effects;
mod frames;
mod frontier;
mod recovery;
mod run_data;
mod settings;
mod summary;
mod write;

#[cfg(test)]
use crate::{metric::Goal, trial::TrialId};
#[cfg(test)]
pub(crate) mod samples;

pub use effects::{AxisEffect, AxisKind, Closest, Edge, Level, LevelRange, Side, axis_effects};
pub use frontier::{FRONTIER_METRICS, Frontier, FrontierPoint, frontiers, pareto};
pub use recovery::{PeakPlace, RecoveryPeak, RecoveryPoint, RecoverySeries, recovery_series};
pub use run_data::{
    CurvePoint, DENSITY_BIN_WIDTH, DENSITY_START, HostInfo, Objective, Outcome, RunData, StoreLine, TrialRow,
};
pub use settings::{compare_settings, is_repeat_key, is_sparsity_key, section_rank};
pub use summary::{SettingGroup, Spread, best_trials, ranked_groups, spread};
pub use write::{TableError, Tables, write_tables};
