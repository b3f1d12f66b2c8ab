//! `saesweep status`: where a run stands, from another terminal too.

use super::{
    CliError, Exit,
    args::{Format, Shared, StatusArgs},
    report::{all_runs, find_run},
    run_data::{Run, read_run},
    show,
};
use crate::table::{Outcome, TrialRow};
use serde_json::{Value, json};

/// Shows one run, or lists all.
pub(super) fn status(shared: &Shared, args: &StatusArgs) -> Result<Exit, CliError> {
    match &args.run {
        Some(run) => {
            let run_dir = find_run(shared, run)?;
            let run = read_run(&run_dir)?;
            match args.format {
                Format::Table => print_run(&run)?,
                Format::Json => show::print_json(&run_json(&run))?,
            }
        }
        None => {
            let runs = all_runs(shared)?.iter().map(read_run).collect::<Result<Vec<_>, _>>()?;
            match args.format {
                Format::Table => print_all(&runs)?,
                Format::Json => show::print_json(&runs.iter().map(run_json).collect())?,
            }
        }
    }
    Ok(Exit::Ok)
}

fn print_all(runs: &[Run]) -> Result<(), CliError> {
    let header = ["run", "state", "trials", "done", "failed", "diverged"].map(str::to_owned);
    let rows: Vec<Vec<String>> = runs
        .iter()
        .map(|run| {
            let n = |outcome| count(run, outcome).to_string();
            vec![
                run.data.folder.clone(),
                state(run),
                run.data.trials.len().to_string(),
                n(Outcome::Done),
                n(Outcome::Failed),
                n(Outcome::Diverged),
            ]
        })
        .collect();
    show::print_table(&header, &rows)
}

fn print_run(run: &Run) -> Result<(), CliError> {
    let counts: Vec<String> = Outcome::ALL
        .into_iter()
        .map(|outcome| (count(run, outcome), outcome))
        .filter(|(n, _)| *n > 0)
        .map(|(n, outcome)| format!("{n} {}", outcome.as_str()))
        .collect();
    let trials = show::plural(run.data.trials.len(), "trial");
    show::print(&format!("{}: {}; {trials}: {}\n\n", run.data.folder, state(run), counts.join(", ")))?;
    let keys = &run.data.varied_keys;
    let mut header = vec!["trial".to_owned(), "status".to_owned(), "step".to_owned()];
    header.extend(keys.iter().map(|key| show::short_key(key).to_owned()));
    let objective = run.data.objective.metric.as_str();
    header.extend(["loss", "l0"].map(str::to_owned));
    if objective != "l0" {
        header.push(objective.to_owned());
    }
    header.push("note".to_owned());
    let rows: Vec<Vec<String>> = run.data.trials.iter().map(|trial| row(run, trial)).collect();
    show::print_table(&header, &rows)
}

fn row(run: &Run, trial: &TrialRow) -> Vec<String> {
    let steps = total_steps(trial).map_or(String::new(), |steps| format!("/{}", show::count(steps)));
    let mut row = vec![
        trial.id.to_string(),
        trial.outcome.as_str().to_owned(),
        format!("{}{steps}", show::count(trial.steps)),
    ];
    for key in &run.data.varied_keys {
        row.push(trial.settings.get(key).map_or(String::new(), show::setting));
    }
    // A running trial shows what it logged last.
    let logged = |name: &str| trial.curve.last().and_then(|point| point.values.get(name).copied());
    let number = |value: Option<f64>| value.map_or(String::new(), show::number);
    row.push(number(logged("losses/overall_loss")));
    row.push(number(trial.metric("l0").or_else(|| logged("metrics/l0"))));
    if run.data.objective.metric != "l0" {
        row.push(number(trial.metric(&run.data.objective.metric)));
    }
    row.push(trial.reason.clone().or_else(|| trial.slot.clone()).unwrap_or_default());
    row
}

fn total_steps(trial: &TrialRow) -> Option<u64> {
    let setting = |key: &str| trial.settings.get(key).and_then(Value::as_u64);
    Some(setting("train.tokens")?.div_ceil(setting("train.batch_size")?.max(1)))
}

fn state(run: &Run) -> String {
    match &run.holder {
        Some(holder) => format!("running, process {} on {}", holder.pid, holder.host),
        None => match run.state.ended {
            Some(true) => "complete".to_owned(),
            Some(false) => "stopped; `saesweep run` continues it".to_owned(),
            None => "broken off; `saesweep run` continues it".to_owned(),
        },
    }
}

fn count(run: &Run, outcome: Outcome) -> usize {
    run.data.trials.iter().filter(|trial| trial.outcome == outcome).count()
}

fn run_json(run: &Run) -> Value {
    let trials: Vec<Value> = run
        .data
        .trials
        .iter()
        .map(|trial| {
            json!({
                "id": trial.id,
                "status": trial.outcome.as_str(),
                "reason": trial.reason,
                "step": trial.steps,
                "steps": total_steps(trial),
                "attempts": trial.attempts,
                "slot": trial.slot,
                "settings": trial.settings,
                "metrics": trial.metrics,
                "last_logged": trial.curve.last().map(|point| &point.values),
            })
        })
        .collect();
    json!({
        "run": run.data.folder,
        "name": run.data.name,
        "running": run.holder.as_ref().map(|holder| json!({"host": holder.host, "pid": holder.pid})),
        "complete": run.state.ended == Some(true),
        "trials": trials,
    })
}
