//! The trial that a user means: an id, its first digits, or a trial folder.

use super::{
    CliError,
    args::Shared,
    report::{all_runs, find_run},
};
use crate::{
    rundir::{RunDir, TrialDir},
    trial::TrialId,
};
use std::path::Path;

/// Finds a trial's folder, in one run or in all of those under the results folder.
pub(super) fn find_trial(shared: &Shared, run: Option<&Path>, name: &str) -> Result<TrialDir, CliError> {
    if Path::new(name).join("config.toml").exists() {
        return Ok(TrialDir::new(name));
    }
    let runs = match run {
        Some(run) => vec![find_run(shared, run)?],
        None => all_runs(shared)?,
    };
    let found = beginning_with(runs, name);
    match found.as_slice() {
        [(run, id)] => Ok(run.trial(id)),
        [] => {
            let searched = match run {
                Some(run) => format!("run `{}`", run.display()),
                None => format!("runs under `{}`", shared.results.display()),
            };
            Err(CliError::Usage(format!("there is no trial `{name}` in the {searched}")))
        }
        [(first, id), rest @ ..] if rest.iter().all(|(_, other)| other == id) => {
            let runs: Vec<_> =
                found.iter().map(|(run, _)| run.trial(id).root().display().to_string()).collect();
            tracing::warn!("trial {id} is in several runs; taking the first of {}", runs.join(" "));
            Ok(first.trial(id))
        }
        several => {
            let ids: Vec<&str> = several.iter().map(|(_, id)| id.0.as_str()).collect();
            Err(CliError::Usage(format!("`{name}` can be several trials: {}", ids.join(" "))))
        }
    }
}

/// The trials of some runs whose ids begin with some digits.
fn beginning_with(runs: Vec<RunDir>, prefix: &str) -> Vec<(RunDir, TrialId)> {
    let mut found = Vec::new();
    for run in runs {
        let Ok(entries) = std::fs::read_dir(run.trials()) else { continue };
        let mut names: Vec<String> =
            entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        names.sort();
        let matching = names.into_iter().filter(|name| name.starts_with(prefix));
        found.extend(matching.map(|name| (run.clone(), TrialId(name))));
    }
    found
}
