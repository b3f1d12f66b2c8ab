//! Tables and report of a run, written into its folder.

use super::CliError;
use crate::{
    report,
    rundir::{RunDir, RunDirError, remove_if_present, write_atomic},
    table::{RunData, write_tables},
};
use std::{collections::BTreeSet, path::Path};

/// Writes tables, figures and report. The report comes last, so what it shows is there.
pub(super) fn write_outputs(run: &RunDir, data: &RunData, template: Option<&str>) -> Result<(), CliError> {
    let tables = write_tables(data, &run.tables())?;
    let report = report::report(data, &tables, template)?;
    for (name, svg) in &report.figures {
        write_atomic(&run.figures().join(name), svg.as_bytes())?;
    }
    write_atomic(&run.report(), report.markdown.as_bytes())?;
    let wanted: BTreeSet<&str> = report.figures.iter().map(|(name, _)| name.as_str()).collect();
    remove_stale_figures(run, &wanted)?;
    Ok(())
}

/// Removes what a killed coordinator left among the tables; for the coordinator alone.
pub(super) fn remove_temporaries(run: &RunDir) -> Result<(), RunDirError> {
    remove_where(&run.tables(), |name| name.starts_with(".tmp"))
}

/// Removes figures of an earlier report that this one does not have.
fn remove_stale_figures(run: &RunDir, wanted: &BTreeSet<&str>) -> Result<(), RunDirError> {
    remove_where(&run.figures(), |name| name.ends_with(".svg") && !wanted.contains(name))
}

fn remove_where(folder: &Path, is_stale: impl Fn(&str) -> bool) -> Result<(), RunDirError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(RunDirError::io("list", folder)(error)),
    };
    for entry in entries {
        let path = entry.map_err(RunDirError::io("list", folder))?.path();
        if path.file_name().and_then(|name| name.to_str()).is_some_and(&is_stale) {
            remove_if_present(&path)?;
        }
    }
    Ok(())
}
