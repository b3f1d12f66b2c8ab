//! The tables that compare trials: the ranking, the frontier and the effect of every axis, as template values.

use super::{
    axes::{edge_words, level_words},
    choose::spread_over,
    sections::MAX_LEVEL_ROWS,
    text::{self, TextTable},
};
use crate::table::{
    AxisEffect, FRONTIER_METRICS, Frontier, RunData, SettingGroup, Spread, Tables, TrialRow, best_trials,
    ranked_groups, spread,
};
use minijinja::{Value, context};

/// Rows of the frontier table.
const MAX_FRONTIER_ROWS: usize = 20;

/// The ranking by the objective.
pub(super) fn best(run: &RunData) -> Option<Value> {
    let objective = run.objective.metric.as_str();
    let ranked = ranked_groups(run);
    let best_trial = *ranked_trials(run).first()?;
    let repeats = run.repeat_keys().next().is_some();
    let others: Vec<&str> =
        ["l0", "ce_loss_score", "explained_variance", "recovered_share", "mmcs", "dead_share"]
            .into_iter()
            .filter(|name| *name != objective && ranked.iter().any(|group| has(group, name)))
            .collect();
    let mut table =
        TextTable::default().right("rank").left(if repeats { "best of its trials" } else { "trial" });
    if repeats {
        table = table.right("finished");
    }
    table = table.right(text::metric_title(objective));
    for name in &others {
        table = table.right(text::metric_title(name));
    }
    for key in run.axis_keys() {
        table = setting_column(table, run, key);
    }
    for (rank, group) in ranked.iter().take(run.top).enumerate() {
        let lead = lead_of(run, group);
        let mut cells = vec![(rank + 1).to_string(), text::code(&lead.id.0)];
        if repeats {
            cells.push(format!("{} of {}", group.objective.n, group.trials.len()));
        }
        cells.push(spread_words(objective, Some(group.objective)));
        cells
            .extend(others.iter().map(|name| spread_words(name, spread(group.trials.iter().copied(), name))));
        cells.extend(run.axis_keys().map(|key| text::escape(&text::setting(lead.settings.get(key)))));
        table.row(cells);
    }
    Some(context! {
        table => table.to_value(),
        shown => ranked.len().min(run.top),
        total => ranked.len(),
        repeats => repeats,
        noise => noise(run, &ranked),
        trial => trial_value(run, best_trial),
    })
}

fn ranked_trials(run: &RunData) -> Vec<&TrialRow> {
    let mut best = best_trials(run);
    if best.is_empty() {
        // A ranking of length 0 still has a best trial.
        best = ranked_groups(run).first().map(|group| lead_of(run, group)).into_iter().collect();
    }
    best
}

fn has(group: &SettingGroup<'_>, name: &str) -> bool {
    group.trials.iter().any(|trial| trial.metric(name).is_some())
}

/// The best trial of a group.
fn lead_of<'a>(run: &RunData, group: &SettingGroup<'a>) -> &'a TrialRow {
    let score = |trial: &TrialRow| trial.metric(&run.objective.metric);
    let better = |a: &'a TrialRow, b: &'a TrialRow| match (score(a), score(b)) {
        (Some(old), Some(new)) if run.is_better(new, old) => b,
        (None, Some(_)) => b,
        _ => a,
    };
    group.trials.iter().copied().reduce(better).expect("invariant: a group has a trial")
}

/// Mean, and ± standard deviation where there are repeats.
fn spread_words(name: &str, spread: Option<Spread>) -> String {
    match spread {
        None => text::dash(),
        Some(Spread { mean, sd: None, .. }) => text::metric_value(name, mean),
        Some(Spread { mean, sd: Some(sd), .. }) => {
            format!("{} ± {}", text::metric_value(name, mean), text::metric_difference(name, sd))
        }
    }
}

/// The standard deviation of the objective between repeats, over all settings that were repeated.
fn noise(run: &RunData, ranked: &[SettingGroup<'_>]) -> Option<String> {
    let (mut squares, mut freedom) = (0.0, 0usize);
    for group in ranked {
        if let Spread { n, sd: Some(sd), .. } = group.objective {
            squares += sd * sd * (n - 1) as f64;
            freedom += n - 1;
        }
    }
    (freedom > 0).then(|| text::metric_difference(&run.objective.metric, (squares / freedom as f64).sqrt()))
}

fn trial_value(run: &RunData, trial: &TrialRow) -> Value {
    let metric = |name: &str| trial.metric(name).map(|value| text::metric_value(name, value));
    let snippet = trial.snippet.trim_end();
    // A transcoder that keeps the k largest has no class there.
    let setting = |key: &str| trial.settings.get(key).and_then(serde_json::Value::as_str).unwrap_or_default();
    let in_sae_lens = setting("model.hook_out").is_empty() || setting("sae.architecture") != "topk";
    context! {
        id => trial.id.0.clone(),
        objective => metric(&run.objective.metric),
        l0 => metric("l0"),
        snippet => (!snippet.is_empty()).then_some(snippet),
        fence => text::fence(snippet),
        folder => format!("{}/trials/{}", run.folder, trial.id.0),
        in_sae_lens => in_sae_lens,
    }
}

/// How far finished trials differ in L0, when that is far enough to spoil a ranking by one number.
pub(super) fn sparsity_mix(run: &RunData) -> Option<Value> {
    let mut all: Vec<f64> = run.trials.iter().filter_map(|trial| trial.metric("l0")).collect();
    all.sort_by(f64::total_cmp);
    let (&low, &high) = (all.first()?, all.last()?);
    if high < 1.5 * low {
        return None;
    }
    let best = ranked_trials(run).first().and_then(|trial| trial.metric("l0"));
    let dense = best.is_some_and(|l0| l0 >= all[all.len() * 3 / 4]);
    Some(context! {
        low => text::metric_value("l0", low),
        high => text::metric_value("l0", high),
        best_is_dense => dense,
    })
}

/// The trials on any frontier, by rising L0.
pub(super) fn frontier_table(run: &RunData, frontiers: &[Frontier]) -> Value {
    let frontiers: Vec<&Frontier> = frontiers.iter().filter(|frontier| !frontier.points.is_empty()).collect();
    let mut rows: Vec<(f64, usize)> = frontiers
        .iter()
        .flat_map(|frontier| frontier.points.iter().map(|point| (point.l0, point.row)))
        .collect();
    rows.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    rows.dedup();
    let mut table = TextTable::default().left("trial").right("L0");
    for frontier in &frontiers {
        table = table.right(text::metric_title(frontier.metric));
    }
    table = table.right(text::metric_title("dead_share"));
    for key in &run.varied_keys {
        table = setting_column(table, run, key);
    }
    for place in spread_over(rows.len(), MAX_FRONTIER_ROWS) {
        let row = rows[place].1;
        let trial = &run.trials[row];
        let mut cells = vec![text::code(&trial.id.0), text::metric_or_dash("l0", trial.metric("l0"))];
        for frontier in &frontiers {
            let value = text::metric_or_dash(frontier.metric, trial.metric(frontier.metric));
            // Bold where the trial is on this metric's frontier.
            let on_it = frontier.points.iter().any(|point| point.row == row);
            cells.push(if on_it { format!("**{value}**") } else { value });
        }
        cells.push(text::metric_or_dash("dead_share", trial.metric("dead_share")));
        cells.extend(run.varied_keys.iter().map(|key| text::escape(&text::setting(trial.settings.get(key)))));
        table.row(cells);
    }
    context! {
        total => rows.len(),
        shown => rows.len().min(MAX_FRONTIER_ROWS),
        reference => text::metric_title(frontiers.first().map_or(FRONTIER_METRICS[0], |first| first.metric)),
        table => (!table.is_empty()).then(|| table.to_value()),
    }
}

/// Every axis with its table and, where its best value is at an end, what that means.
pub(super) fn effects(run: &RunData, tables: &Tables) -> Vec<Value> {
    tables.effects.iter().map(|effect| effect_value(run, effect)).collect()
}

fn effect_value(run: &RunData, effect: &AxisEffect) -> Value {
    let objective = run.objective.metric.as_str();
    let title = text::metric_title(objective);
    let mut table = setting_column(TextTable::default(), run, &effect.key)
        .right("done")
        .right("lost")
        .right(format!("mean {title}"))
        .right(format!("best {title}"))
        .right("mean L0")
        .right("gap")
        .right("on frontier")
        .right("dead latents");
    for level in effect.levels.iter().take(MAX_LEVEL_ROWS) {
        let done = level.objective.map_or(0, |spread| spread.n);
        table.row(vec![
            level_words(&level.range),
            format!("{done} of {}", level.planned),
            level.lost.to_string(),
            spread_words(objective, level.objective.map(|spread| Spread { sd: None, ..spread })),
            text::metric_or_dash(objective, level.best),
            text::metric_or_dash("l0", level.l0.map(|spread| spread.mean)),
            level.gap.map_or_else(text::dash, |gap| format!("{gap:.4}")),
            level.on_frontier.to_string(),
            text::metric_or_dash("dead_share", level.dead_share),
        ]);
    }
    context! {
        key => effect.key.clone(),
        table => table.to_value(),
        omitted => effect.levels.len().saturating_sub(MAX_LEVEL_ROWS),
        edge => edge_words(run, effect),
    }
}

/// A column for a setting: words to the left, numbers to the right.
pub(super) fn setting_column(table: TextTable, run: &RunData, key: &str) -> TextTable {
    let words =
        run.trials.iter().any(|trial| trial.settings.get(key).is_some_and(serde_json::Value::is_string));
    if words { table.left(text::code(key)) } else { table.right(text::code(key)) }
}
