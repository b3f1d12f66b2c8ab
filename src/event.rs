//! What happens in a run, as values: lines of the journal and lines that a trial prints.
//!
//! [`Event`] is appended to `events.jsonl` by the coordinator alone and replayed to find the state of a
//! run. [`TrialMessage`] is what a trial process prints on stdout, one JSON object a line.

use crate::{
    slot::SlotId,
    trial::{TrialId, TrialResult, TrialStatus},
};
use serde::{Deserialize, Serialize};

/// Version of the journal; raise it when a variant changes its meaning or is removed.
pub const JOURNAL_VERSION: u32 = 1;

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JournalLine {
    /// When, in seconds since the Unix epoch.
    pub at_unix_secs: f64,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// Something that happened to a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A coordinator took the run folder.
    RunStarted {
        /// [`JOURNAL_VERSION`] of the writer.
        version: u32,
        /// Program version.
        saesweep: String,
        /// Host that coordinates.
        host: String,
        /// Process id of the coordinator.
        pid: u32,
    },
    /// The trials this run wants, in plan order.
    Planned {
        /// All of them, finished ones too.
        trials: Vec<TrialId>,
    },
    /// A trial process was started.
    TrialStarted {
        /// Which.
        id: TrialId,
        /// Where.
        slot: SlotId,
        /// 1 for the first start since the trial was last finished or planned.
        attempt: u32,
    },
    /// A trial process ended with a verdict.
    TrialEnded {
        /// Which.
        id: TrialId,
        /// Verdict.
        status: TrialStatus,
        /// Why, when not done.
        reason: Option<String>,
        /// Seconds from its first start in this run.
        secs: f64,
    },
    /// A trial process ended without a verdict: killed, crashed, or stopped on request.
    TrialInterrupted {
        /// Which.
        id: TrialId,
        /// How it ended, for example `killed by signal 9`.
        reason: String,
        /// Whether the death counts against `run.retries`.
        counts: bool,
    },
    /// The coordinator ended in order.
    RunEnded {
        /// Whether trials remain.
        complete: bool,
    },
}

/// A line that a trial prints on stdout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub enum TrialMessage {
    /// The trial has opened its store and starts or continues.
    Started {
        /// Steps already done according to its checkpoint.
        from_step: u64,
        /// Steps in all.
        steps: u64,
    },
    /// Some steps later.
    Progress {
        /// Steps done.
        step: u64,
        /// Loss of the last step.
        loss: f64,
        /// Mean active latents per token in the last step.
        l0: f64,
        /// Training tokens per second.
        tokens_per_sec: f64,
    },
    /// Training is over, evaluation has begun.
    Evaluating,
    /// The verdict, also in `result.json`.
    Ended {
        /// The result.
        result: Box<TrialResult>,
    },
}
