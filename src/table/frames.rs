//! The tables as polars frames. Columns and rows have a fixed order, so that equal runs give equal files.

use super::{Frontier, RunData, section_rank};
use crate::metric::METRICS;
use polars::prelude::{Column, DataFrame, PolarsResult};
use serde_json::Value;
use std::collections::BTreeSet;

/// One row per trial: identity, every setting, the verdict, every metric, and last what depends on the
/// machine and the hour.
pub(super) fn trials_frame(run: &RunData) -> PolarsResult<DataFrame> {
    let trials = &run.trials;
    let mut columns = vec![
        text("trial", trials.iter().map(|trial| Some(trial.id.0.as_str()))),
        whole("index", trials.iter().map(|trial| Some(trial.index as u64))),
    ];
    let mut keys: Vec<&str> = trials
        .iter()
        .flat_map(|trial| trial.settings.keys().map(String::as_str))
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    keys.sort_by_key(|key| section_rank(key));
    for key in keys {
        columns.push(setting(key, trials.iter().map(|trial| trial.settings.get(key))));
    }
    columns.push(text("status", trials.iter().map(|trial| Some(trial.outcome.as_str()))));
    columns.push(text("reason", trials.iter().map(|trial| trial.reason.as_deref())));
    columns.push(whole("steps", trials.iter().map(|trial| Some(trial.steps))));
    for name in metric_names(run) {
        let finite = |value: &&f64| value.is_finite();
        columns.push(real(name, trials.iter().map(|trial| trial.metrics.get(name).filter(finite).copied())));
    }
    columns.push(whole("attempts", trials.iter().map(|trial| Some(u64::from(trial.attempts)))));
    columns.push(text("slot", trials.iter().map(|trial| trial.slot.as_deref())));
    columns.push(real("secs", trials.iter().map(|trial| trial.secs)));
    columns.push(real("tokens_per_sec", trials.iter().map(|trial| trial.tokens_per_sec)));
    DataFrame::new(trials.len(), columns)
}

/// All known metrics, so that every run has the same columns, then those only this run knows.
fn metric_names(run: &RunData) -> Vec<&str> {
    let known: Vec<&str> = METRICS.iter().map(|metric| metric.name).collect();
    let mine: BTreeSet<&str> =
        run.trials.iter().flat_map(|trial| trial.metrics.keys().map(String::as_str)).collect();
    let extra: Vec<&str> = mine.into_iter().filter(|name| !known.contains(name)).collect();
    known.into_iter().chain(extra).collect()
}

/// One row per trial and logged step.
pub(super) fn curves_frame(run: &RunData) -> PolarsResult<DataFrame> {
    let points = || run.trials.iter().flat_map(|trial| trial.curve.iter().map(move |point| (trial, point)));
    let names: BTreeSet<&str> =
        points().flat_map(|(_, point)| point.values.keys().map(String::as_str)).collect();
    let mut columns = vec![
        text("trial", points().map(|(trial, _)| Some(trial.id.0.as_str()))),
        whole("step", points().map(|(_, point)| Some(point.step))),
    ];
    for name in names.into_iter().filter(|name| *name != "step" && *name != "trial") {
        columns.push(real(name, points().map(|(_, point)| point.values.get(name).copied())));
    }
    DataFrame::new(points().count(), columns)
}

/// One row per frontier and trial on it, by rising L0, with the settings that vary.
pub(super) fn frontier_frame(run: &RunData, frontiers: &[Frontier]) -> PolarsResult<DataFrame> {
    let points = || {
        frontiers
            .iter()
            .flat_map(|frontier| frontier.points.iter().map(move |point| (frontier.metric, *point)))
    };
    let trial_of = |row: usize| &run.trials[row];
    let mut columns = vec![
        text("frontier", points().map(|(metric, _)| Some(metric))),
        text("trial", points().map(|(_, point)| Some(trial_of(point.row).id.0.as_str()))),
        real("l0", points().map(|(_, point)| Some(point.l0))),
        real("fidelity", points().map(|(_, point)| Some(point.fidelity))),
    ];
    for key in &run.varied_keys {
        columns.push(setting(key, points().map(|(_, point)| trial_of(point.row).settings.get(key))));
    }
    DataFrame::new(points().count(), columns)
}

fn text<'a>(name: &str, values: impl Iterator<Item = Option<&'a str>>) -> Column {
    Column::new(name.into(), values.collect::<Vec<_>>())
}

fn whole(name: &str, values: impl Iterator<Item = Option<u64>>) -> Column {
    Column::new(name.into(), values.collect::<Vec<_>>())
}

fn real(name: &str, values: impl Iterator<Item = Option<f64>>) -> Column {
    // A table's missing number is null; NaN would sort above every number in some readers.
    Column::new(name.into(), values.map(|value| value.filter(|value| value.is_finite())).collect::<Vec<_>>())
}

/// The narrowest of booleans, whole numbers, numbers and text that holds every value of the setting.
fn setting<'a>(name: &str, values: impl Iterator<Item = Option<&'a Value>> + Clone) -> Column {
    let present = || values.clone().flatten().filter(|value| !value.is_null());
    if present().all(Value::is_boolean) && present().next().is_some() {
        return Column::new(name.into(), values.map(|value| value?.as_bool()).collect::<Vec<_>>());
    }
    if present().all(Value::is_u64) {
        return whole(name, values.map(|value| value?.as_u64()));
    }
    if present().all(Value::is_i64) {
        return Column::new(name.into(), values.map(|value| value?.as_i64()).collect::<Vec<_>>());
    }
    if present().all(Value::is_number) {
        return real(name, values.map(|value| value?.as_f64()));
    }
    let words: Vec<Option<String>> = values
        .map(|value| match value? {
            Value::Null => None,
            Value::String(word) => Some(word.clone()),
            other => Some(other.to_string()),
        })
        .collect();
    text(name, words.iter().map(Option::as_deref))
}
