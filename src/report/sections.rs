//! What a report says besides its rankings: outcomes, latents, stores, settings, time and definitions, as
//! template values.

use super::{
    axes::{goal_words, level_words},
    ranking::setting_column,
    text::{self, TextTable},
};
use crate::metric::METRICS;
use crate::table::{AxisEffect, LevelRange, Outcome, RunData, TrialRow, section_rank};
use minijinja::{Value, context};
use std::collections::BTreeSet;

/// Values of one axis, in words and in tables.
pub(super) const MAX_LEVEL_ROWS: usize = 12;
/// Trials listed for their dead latents.
const MAX_DEAD_ROWS: usize = 8;
/// Share of dead latents from which a trial is listed.
const MANY_DEAD: f64 = 0.1;

/// How many trials had which outcome.
pub(super) fn outcomes(run: &RunData) -> Value {
    let mut table = TextTable::default().left("outcome").right("trials");
    let mut words = Vec::new();
    for outcome in Outcome::ALL {
        let n = count(run, outcome);
        if n > 0 {
            table.row(vec![outcome.as_str().to_owned(), n.to_string()]);
            words.push(format!("{n} {}", outcome.as_str()));
        }
    }
    let open = run.trials.iter().filter(|trial| !trial.outcome.is_final()).count();
    context! {
        planned => run.trials.len(),
        done => count(run, Outcome::Done),
        open => open,
        words => words.join(", "),
        table => table.to_value(),
    }
}

fn count(run: &RunData, outcome: Outcome) -> usize {
    run.trials.iter().filter(|trial| trial.outcome == outcome).count()
}

/// The varied settings and their values in a line each.
pub(super) fn axis_lines(run: &RunData, effects: &[AxisEffect]) -> Vec<Value> {
    let mut lines: Vec<Value> = effects
        .iter()
        .map(|effect| context! { key => effect.key.clone(), values => values_words(run, effect) })
        .collect();
    for key in run.repeat_keys() {
        let values: BTreeSet<String> =
            run.trials.iter().map(|trial| text::setting(trial.settings.get(key))).collect();
        lines.push(context! { key => key, values => text::count(values.len(), "seed", "seeds") });
    }
    lines
}

/// All values of an axis, or how many there are and between which ends.
fn values_words(run: &RunData, effect: &AxisEffect) -> String {
    let ranges: Vec<&LevelRange> = effect
        .levels
        .iter()
        .map(|level| &level.range)
        .filter(|range| **range != LevelRange::One(serde_json::Value::Null))
        .collect();
    if let (Some(LevelRange::Between(low, _)), Some(LevelRange::Between(_, high))) =
        (ranges.first(), ranges.last())
    {
        let distinct: BTreeSet<String> = run
            .trials
            .iter()
            .filter_map(|trial| trial.settings.get(&effect.key))
            .map(ToString::to_string)
            .collect();
        return format!("{} to {}, {} values", text::number(*low), text::number(*high), distinct.len());
    }
    let words: Vec<String> = ranges.iter().take(MAX_LEVEL_ROWS).map(|range| level_words(range)).collect();
    let more = ranges.len().saturating_sub(MAX_LEVEL_ROWS);
    words.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

/// Dead latents: their spread over trials, and the trials with many.
pub(super) fn dead(run: &RunData) -> Option<Value> {
    let mut trials: Vec<(&TrialRow, f64)> =
        run.trials.iter().filter_map(|trial| Some((trial, trial.metric("dead_share")?))).collect();
    trials.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.index.cmp(&b.0.index)));
    let (&(_, most), &(_, least)) = (trials.first()?, trials.last()?);
    let median = trials[trials.len() / 2].1;
    let many = trials.iter().filter(|(_, share)| *share > MANY_DEAD).count();
    let mut table =
        TextTable::default().left("trial").right("dead latents").right("dense latents").right("L0");
    for key in &run.varied_keys {
        table = setting_column(table, run, key);
    }
    for (trial, share) in trials.iter().take(many.min(MAX_DEAD_ROWS)) {
        let mut cells = vec![text::code(&trial.id.0), text::metric_value("dead_share", *share)];
        cells.extend(["dense_share", "l0"].map(|name| text::metric_or_dash(name, trial.metric(name))));
        cells.extend(run.varied_keys.iter().map(|key| text::escape(&text::setting(trial.settings.get(key)))));
        table.row(cells);
    }
    let windows: BTreeSet<String> = run
        .trials
        .iter()
        .filter_map(|trial| trial.settings.get("train.dead_feature_window"))
        .map(|window| text::setting(Some(window)))
        .collect();
    let share = |value| text::metric_value("dead_share", value);
    Some(context! {
        least => share(least),
        median => share(median),
        most => share(most),
        many => many,
        limit => share(MANY_DEAD),
        window => (windows.len() == 1).then(|| windows.first().cloned()),
        shown => many.min(MAX_DEAD_ROWS),
        table => (!table.is_empty()).then(|| table.to_value()),
    })
}

/// The stores.
pub(super) fn stores(run: &RunData) -> Value {
    let mut table = TextTable::default()
        .left("store")
        .left("model")
        .left("hook")
        .left("data")
        .right("rows")
        .right("width")
        .right("context")
        .left("format")
        .right("size");
    for store in &run.stores {
        table.row(vec![
            text::code(&store.key),
            text::escape(&store.model),
            if store.hook.is_empty() { text::dash() } else { text::code(&store.hook) },
            text::escape(&store.dataset),
            text::grouped(store.rows),
            store.width.to_string(),
            store.context_size.to_string(),
            text::escape(&store.dtype),
            text::bytes(store.bytes),
        ]);
    }
    context! { n => run.stores.len(), table => (!table.is_empty()).then(|| table.to_value()) }
}

/// The settings that all trials share.
pub(super) fn fixed(run: &RunData) -> Option<Value> {
    let first = run.trials.first()?;
    let varies = |key: &str| {
        run.varied_keys.iter().any(|varied| varied == key)
            || run.trials.iter().any(|trial| trial.settings.get(key) != first.settings.get(key))
    };
    let mut keys: Vec<&String> = first.settings.keys().filter(|key| !varies(key)).collect();
    keys.sort_by_key(|key| section_rank(key));
    let mut table = TextTable::default().left("setting").left("value");
    for key in keys {
        table.row(vec![text::code(key), text::escape(&text::setting(first.settings.get(key)))]);
    }
    (!table.is_empty()).then(|| table.to_value())
}

/// Time and speed, where known.
pub(super) fn time(run: &RunData) -> Option<Value> {
    let secs: f64 = run.trials.iter().filter_map(|trial| trial.secs).filter(|secs| secs.is_finite()).sum();
    let mut speeds: Vec<f64> = run
        .trials
        .iter()
        .filter_map(|trial| trial.tokens_per_sec)
        .filter(|speed| speed.is_finite())
        .collect();
    speeds.sort_by(f64::total_cmp);
    let slots: BTreeSet<&str> = run.trials.iter().filter_map(|trial| trial.slot.as_deref()).collect();
    let slots: Vec<&str> = slots.into_iter().collect();
    (secs > 0.0).then(|| {
        context! {
            trials => text::duration(secs),
            tokens_per_sec => speeds.get(speeds.len() / 2).map(|speed| text::grouped(speed.round() as u64)),
            slots => slots.join(", "),
        }
    })
}

/// Definitions of all metrics that a trial of this run has, and of the objective.
pub(super) fn metrics(run: &RunData) -> Value {
    let mut table = TextTable::default().left("metric").left("column").left("definition").left("better");
    let used = |name: &str| {
        name == run.objective.metric || run.trials.iter().any(|trial| trial.metrics.contains_key(name))
    };
    for metric in METRICS.iter().filter(|metric| used(metric.name)) {
        table.row(vec![
            metric.title.to_owned(),
            text::code(metric.name),
            metric.definition.replace('|', "\\|"),
            metric.goal.map_or_else(text::dash, |goal| goal_words(goal).replace(" is better", "")),
        ]);
    }
    table.to_value()
}
