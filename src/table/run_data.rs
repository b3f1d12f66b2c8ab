//! What a report is made from, as plain data. Read [`RunData`] first. Nothing here is computed.

use crate::{metric::Goal, trial::TrialId};
use serde_json::Value;
use std::collections::BTreeMap;

/// Everything about one run that tables and report show.
#[derive(Debug, Clone, PartialEq)]
pub struct RunData {
    /// The sweep's name.
    pub name: String,
    /// The run folder as a user would type it, for example `results/quickstart`.
    pub folder: String,
    /// How trials were chosen: `grid`, `list`, `random` …
    pub strategy: String,
    /// What the sweep ranks by.
    pub objective: Objective,
    /// How many trials the report ranks.
    pub top: usize,
    /// Dotted keys of the settings that differ between planned trials, in the order of the sweep file.
    pub varied_keys: Vec<String>,
    /// Remarks of the planner, for example how many combinations were excluded.
    pub notes: Vec<String>,
    /// All planned trials, in plan order.
    pub trials: Vec<TrialRow>,
    /// The activation stores that they train on.
    pub stores: Vec<StoreLine>,
    /// The machine.
    pub host: HostInfo,
}

/// The metric that the sweep ranks by and its better direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Objective {
    /// Name, see [`crate::metric::METRICS`].
    pub metric: String,
    /// Better direction.
    pub goal: Goal,
}

/// One planned trial and what has become of it.
#[derive(Debug, Clone, PartialEq)]
pub struct TrialRow {
    /// Identity.
    pub id: TrialId,
    /// Place in the plan, from 0.
    pub index: usize,
    /// Every setting by dotted key; a setting that the architecture lacks is absent.
    pub settings: BTreeMap<String, Value>,
    /// What has become of it.
    pub outcome: Outcome,
    /// One line on why, when it has not ended well.
    pub reason: Option<String>,
    /// Metrics by name; absent where they could not be computed.
    pub metrics: BTreeMap<String, f64>,
    /// Latents per bin of log10 firing density: bin `i` covers [`DENSITY_START`] + `i` ·
    /// [`DENSITY_BIN_WIDTH`] upwards, the first bin also those that never fired. Empty when unknown.
    pub log10_density: Vec<u64>,
    /// Steps completed.
    pub steps: u64,
    /// Times it was started.
    pub attempts: u32,
    /// Seconds of training and evaluation.
    pub secs: Option<f64>,
    /// Training tokens per second.
    pub tokens_per_sec: Option<f64>,
    /// Slot of the last attempt, for example `cpu:0`.
    pub slot: Option<String>,
    /// Last lines of its log, oldest first.
    pub log_tail: Vec<String>,
    /// Training metrics by step, in rising order of steps.
    pub curve: Vec<CurvePoint>,
    /// TOML with the settings that rebuild this trial as a sweep of its own; empty when unknown.
    pub snippet: String,
}

/// Lower edge of the first bin of [`TrialRow::log10_density`].
pub const DENSITY_START: f64 = -10.0;
/// Width of a bin of [`TrialRow::log10_density`], in decades.
pub const DENSITY_BIN_WIDTH: f64 = 0.5;

/// What has become of a planned trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Trained and evaluated.
    Done,
    /// The loss became NaN or infinite.
    Diverged,
    /// Ended with an error, or died too often.
    Failed,
    /// Stopped midway; the next run continues it.
    Interrupted,
    /// At work when the data was read.
    Running,
    /// Not started.
    Pending,
}

impl Outcome {
    /// All, in the order of reports.
    pub const ALL: [Self; 6] =
        [Self::Done, Self::Diverged, Self::Failed, Self::Interrupted, Self::Running, Self::Pending];

    /// The word in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Diverged => "diverged",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
            Self::Running => "running",
            Self::Pending => "pending",
        }
    }

    /// Whether nothing more is to come from the trial.
    pub fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Diverged | Self::Failed)
    }
}

/// Training metrics of one logged step.
#[derive(Debug, Clone, PartialEq)]
pub struct CurvePoint {
    /// Steps done.
    pub step: u64,
    /// Metrics by name, as in `metrics.jsonl`.
    pub values: BTreeMap<String, f64>,
}

/// One activation store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreLine {
    /// Its key, the name of its folder.
    pub key: String,
    /// Model as written in the sweep.
    pub model: String,
    /// Hook.
    pub hook: String,
    /// Data set as written in the sweep.
    pub dataset: String,
    /// Training rows (activations).
    pub rows: u64,
    /// Numbers in a row.
    pub width: usize,
    /// Tokens in a sequence.
    pub context_size: usize,
    /// Number format.
    pub dtype: String,
    /// Bytes on disk.
    pub bytes: u64,
}

/// The machine and the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostInfo {
    /// Processor model.
    pub cpu: String,
    /// Cores that the program may use.
    pub cores: usize,
    /// Instruction set that the kernels chose.
    pub isa: String,
    /// Operating system.
    pub os: String,
    /// Program version.
    pub saesweep: String,
}

impl TrialRow {
    /// A metric of a finished trial; `None` for trials that did not finish and for numbers that are not
    /// finite, so that neither can ever be the best.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let value = self.metrics.get(name).copied().filter(|value| value.is_finite());
        value.filter(|_| self.outcome == Outcome::Done)
    }
}

impl RunData {
    /// The varied keys that are choices, not repeats of the same choice.
    pub fn axis_keys(&self) -> impl Iterator<Item = &str> {
        self.varied_keys.iter().map(String::as_str).filter(|key| !super::is_repeat_key(key))
    }

    /// The varied keys that are seeds.
    pub fn repeat_keys(&self) -> impl Iterator<Item = &str> {
        self.varied_keys.iter().map(String::as_str).filter(|key| super::is_repeat_key(key))
    }

    /// The L0 of the true features of the data that trials were evaluated on, where those are known; one value
    /// for each store.
    pub fn true_l0(&self) -> Vec<f64> {
        let mut values: Vec<f64> = self.trials.iter().filter_map(|trial| trial.metric("true_l0")).collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        values
    }

    /// Whether `candidate` is better than `incumbent` by the objective.
    pub fn is_better(&self, candidate: f64, incumbent: f64) -> bool {
        match self.objective.goal {
            Goal::Maximize => candidate > incumbent,
            Goal::Minimize => candidate < incumbent,
        }
    }
}
