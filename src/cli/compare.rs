//! `saesweep compare`: the settings in which trials differ, and their metrics side by side.

use super::{
    CliError, Exit,
    args::{CompareArgs, Format, Shared},
    show,
    trial_dir::find_trial,
};
use crate::{
    metric::METRICS,
    rundir::{read_job, read_result},
    spec,
    table::section_rank,
    trial::{TrialJob, TrialResult},
};
use serde_json::{Value, json};
use std::collections::BTreeMap;

struct Compared {
    job: TrialJob,
    settings: BTreeMap<String, Value>,
    result: Option<TrialResult>,
}

/// Compares trials.
pub(super) fn compare(shared: &Shared, args: &CompareArgs) -> Result<Exit, CliError> {
    let trials = args.trials.iter().map(|name| find(shared, name)).collect::<Result<Vec<_>, _>>()?;
    match args.format {
        Format::Table => print(&trials)?,
        Format::Json => {
            let differing = differing(&trials);
            let values: Vec<Value> = trials
                .iter()
                .map(|trial| {
                    let settings: BTreeMap<&str, Option<&Value>> =
                        differing.iter().map(|key| (*key, trial.settings.get(*key))).collect();
                    json!({
                        "id": trial.job.id,
                        "status": trial.result.as_ref().map(|result| result.status),
                        "differing_settings": settings,
                        "metrics": trial.result.as_ref().map(|result| &result.metrics),
                    })
                })
                .collect();
            show::print_json(&Value::Array(values))?;
        }
    }
    Ok(Exit::Ok)
}

fn find(shared: &Shared, name: &str) -> Result<Compared, CliError> {
    let dir = find_trial(shared, None, name)?;
    let job = read_job(&dir)?.ok_or_else(|| {
        CliError::Usage(format!("`{}` is no trial folder: it has no config.toml", dir.root().display()))
    })?;
    let settings = spec::flat(&job.config);
    Ok(Compared { job, settings, result: read_result(&dir)? })
}

/// Keys of the settings in which the trials differ, in the order of reports.
fn differing(trials: &[Compared]) -> Vec<&str> {
    let mut keys: Vec<&str> =
        trials.iter().flat_map(|trial| trial.settings.keys().map(String::as_str)).collect();
    keys.sort_by_key(|key| (section_rank(key), *key));
    keys.dedup();
    keys.retain(|key| trials.iter().any(|trial| trial.settings.get(*key) != trials[0].settings.get(*key)));
    keys
}

fn print(trials: &[Compared]) -> Result<(), CliError> {
    let ids = trials.iter().map(|trial| trial.job.id.to_string());
    let header: Vec<String> = std::iter::once("setting".to_owned()).chain(ids.clone()).collect();
    let settings: Vec<Vec<String>> = differing(trials)
        .into_iter()
        .map(|key| {
            let values =
                trials.iter().map(|trial| trial.settings.get(key).map_or("–".to_owned(), show::setting));
            std::iter::once(key.to_owned()).chain(values).collect()
        })
        .collect();
    if settings.is_empty() {
        show::print("The trials have the same settings.\n")?;
    } else {
        show::print_table(&header, &settings)?;
    }
    let header: Vec<String> = std::iter::once("metric".to_owned()).chain(ids).collect();
    let value = |trial: &Compared, name: &str| trial.result.as_ref()?.metrics.get(name).copied();
    let mut rows: Vec<Vec<String>> = vec![
        std::iter::once("status".to_owned())
            .chain(trials.iter().map(|trial| {
                trial.result.as_ref().map_or("no result yet".to_owned(), |result| {
                    show::setting(
                        &serde_json::to_value(result.status).expect("invariant: a status is a word"),
                    )
                })
            }))
            .collect(),
    ];
    for metric in METRICS {
        if trials.iter().any(|trial| value(trial, metric.name).is_some()) {
            let values =
                trials.iter().map(|trial| value(trial, metric.name).map_or("–".to_owned(), show::number));
            rows.push(std::iter::once(metric.name.to_owned()).chain(values).collect());
        }
    }
    show::print("\n")?;
    show::print_table(&header, &rows)
}
