//! `saesweep report`: tables and report again, from the run folder alone.

use super::{
    CliError, Exit,
    args::{ReportArgs, Shared},
    outputs::write_outputs,
    run_data::read_run,
    show,
};
use crate::rundir::RunDir;
use std::path::Path;

/// Rebuilds tables and report.
pub(super) fn report(shared: &Shared, args: &ReportArgs) -> Result<Exit, CliError> {
    let run_dir = find_run(shared, &args.run)?;
    let run = read_run(&run_dir)?;
    let template = match &args.template {
        Some(path) => Some(
            std::fs::read_to_string(path).map_err(|source| CliError::Read { path: path.clone(), source })?,
        ),
        None => run.template,
    };
    write_outputs(&run_dir, &run.data, template.as_deref())?;
    show::print(&format!("{}\n", run_dir.report().display()))?;
    Ok(Exit::Ok)
}

/// The run folder that a user means: a path to one, or a name under the results folder.
pub(super) fn find_run(shared: &Shared, run: &Path) -> Result<RunDir, CliError> {
    let candidates = [RunDir::new(shared.results.join(run)), RunDir::new(run)];
    let found = candidates.iter().find(|run| run.run_json().exists());
    found.cloned().ok_or_else(|| {
        CliError::Usage(format!(
            "there is no run `{}`; looked for `{}` and `{}`",
            run.display(),
            candidates[0].run_json().display(),
            candidates[1].run_json().display()
        ))
    })
}

/// All run folders under the results folder, by name.
pub(super) fn all_runs(shared: &Shared) -> Result<Vec<RunDir>, CliError> {
    let folder = &shared.results;
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(CliError::Read { path: folder.clone(), source }),
    };
    let mut runs = Vec::new();
    for entry in entries {
        let path = entry.map_err(|source| CliError::Read { path: folder.clone(), source })?.path();
        let run = RunDir::new(path);
        if run.run_json().exists() {
            runs.push(run);
        }
    }
    runs.sort_by(|a, b| a.root().cmp(b.root()));
    Ok(runs)
}
