//! From a run folder to the rows that tables and reports are made from.

use super::{CliError, facts::RunFacts};
use crate::{
    rundir::{
        Holder, ReplayError, RunDir, RunDirError, RunState, TrialPhase, TrialRecord, holder, read_results,
        replay,
    },
    spec,
    table::{CurvePoint, Outcome, RunData, TrialRow},
    trial::TrialStatus,
};
use std::collections::BTreeMap;

/// A run folder, read.
#[derive(Debug)]
pub(super) struct Run {
    /// The rows.
    pub(super) data: RunData,
    /// The report's template, where it is not the built-in one.
    pub(super) template: Option<String>,
    /// The journal's state.
    pub(super) state: RunState,
    /// Who coordinates it now.
    pub(super) holder: Option<Holder>,
}

/// Reads a run folder, whether or not a coordinator works on it.
pub(super) fn read_run(run: &RunDir) -> Result<Run, CliError> {
    let facts = RunFacts::read(run)?.ok_or_else(|| {
        CliError::Usage(format!("`{}` is no run folder: it has no run.json", run.root().display()))
    })?;
    let (state, holder) = (read_state(run)?, holder(run)?);
    let data = run_data(run, &facts, &state, holder.is_some())?;
    Ok(Run { data, template: facts.template, state, holder })
}

/// Replays a run's journal. The coordinator may be writing its last line just now; that line is left out.
pub(super) fn read_state(run: &RunDir) -> Result<RunState, CliError> {
    let path = run.events();
    let journal = match std::fs::read(&path) {
        Ok(journal) => journal,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(source) => return Err(CliError::Read { path, source }),
    };
    let journal_error = |source: ReplayError| RunDirError::Journal { path, source };
    Ok(replay(&journal).map_err(journal_error)?.state)
}

/// The rows of a run. `is_live` says whether a coordinator works on it.
pub(super) fn run_data(
    run: &RunDir,
    facts: &RunFacts,
    state: &RunState,
    is_live: bool,
) -> Result<RunData, CliError> {
    let records = read_results(run, &facts.trials, state)?;
    let trials = records.into_iter().enumerate().map(|(index, record)| row(index, record, is_live)).collect();
    Ok(RunData {
        name: facts.name.clone(),
        folder: run.root().display().to_string(),
        strategy: facts.strategy.clone(),
        objective: facts.objective(),
        top: facts.top,
        varied_keys: facts.varied_keys.clone(),
        notes: facts.notes.clone(),
        trials,
        stores: facts.store_lines(),
        host: facts.host(),
    })
}

fn row(index: usize, record: TrialRecord, is_live: bool) -> TrialRow {
    let (outcome, reason) = outcome(&record, is_live);
    let config = record.job.as_ref().map(|job| &job.config);
    let curve: Vec<CurvePoint> = record.curve.iter().filter_map(curve_point).collect();
    let timing = record.result.as_ref().map(|result| &result.timing);
    let running_on = match record.state.as_ref().map(|state| &state.phase) {
        Some(TrialPhase::Running { slot, .. }) => Some(slot.to_string()),
        _ => None,
    };
    TrialRow {
        index,
        settings: config.map(spec::flat).unwrap_or_default(),
        outcome,
        reason,
        log10_density: record.result.as_ref().map(|result| result.log10_density.clone()).unwrap_or_default(),
        steps: match &record.result {
            Some(result) => result.steps,
            None => curve.last().map_or(0, |point| point.step),
        },
        attempts: record.state.as_ref().map_or(0, |state| state.attempts),
        secs: timing.map(|timing| timing.train_secs + timing.eval_secs),
        tokens_per_sec: timing.map(|timing| timing.tokens_per_sec),
        slot: timing.map(|timing| timing.slot.clone()).or(running_on),
        snippet: config.map(spec::trial_toml_snippet).unwrap_or_default(),
        id: record.id,
        metrics: record.result.map(|result| result.metrics).unwrap_or_default(),
        log_tail: record.log_tail,
        curve,
    }
}

/// A trial's own result comes first; the journal tells of those that could not leave one.
fn outcome(record: &TrialRecord, is_live: bool) -> (Outcome, Option<String>) {
    let of = |status: TrialStatus| match status {
        TrialStatus::Done => Outcome::Done,
        TrialStatus::Diverged => Outcome::Diverged,
        TrialStatus::Failed => Outcome::Failed,
    };
    if let Some(result) = &record.result {
        return (of(result.status), result.reason.clone());
    }
    match record.state.as_ref().map(|state| &state.phase) {
        Some(TrialPhase::Ended { status: TrialStatus::Failed, reason, .. }) => {
            (Outcome::Failed, reason.clone())
        }
        Some(TrialPhase::Running { .. }) if is_live => (Outcome::Running, None),
        Some(TrialPhase::Running { .. }) => (Outcome::Interrupted, Some("its coordinator ended".to_owned())),
        Some(TrialPhase::Interrupted { reason }) => (Outcome::Interrupted, Some(reason.clone())),
        // Ended well, but the result is gone: it will run again.
        Some(TrialPhase::Ended { .. } | TrialPhase::Pending) | None => (Outcome::Pending, None),
    }
}

fn curve_point(line: &serde_json::Map<String, serde_json::Value>) -> Option<CurvePoint> {
    let step = line.get("step")?.as_u64()?;
    let values: BTreeMap<String, f64> = line
        .iter()
        .filter(|(name, _)| *name != "step")
        .filter_map(|(name, value)| Some((name.clone(), value.as_f64()?)))
        .collect();
    Some(CurvePoint { step, values })
}
