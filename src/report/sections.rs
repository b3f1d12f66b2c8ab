//! The tables and lists of a report, section by section, as template values.

use super::{
    axes::{edge_words, goal_words, level_words},
    choose::spread_over,
    text::{self, TextTable},
};
use crate::metric::METRICS;
use crate::table::{
    AxisEffect, Frontier, Outcome, RunData, SettingGroup, Spread, Tables, TrialRow, best_trials,
    ranked_groups, section_rank, spread,
};
use minijinja::{Value, context};
use std::collections::BTreeSet;

/// Rows of the frontier table.
const MAX_FRONTIER_ROWS: usize = 20;
/// Rows of one axis' table.
const MAX_LEVEL_ROWS: usize = 12;
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
        .map(|effect| {
            let shown: Vec<String> =
                effect.levels.iter().take(MAX_LEVEL_ROWS).map(|level| level_words(&level.range)).collect();
            let more = effect.levels.len().saturating_sub(MAX_LEVEL_ROWS);
            let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
            context! { key => effect.key.clone(), values => format!("{}{rest}", shown.join(", ")) }
        })
        .collect();
    for key in run.repeat_keys() {
        let values: BTreeSet<String> =
            run.trials.iter().map(|trial| text::setting(trial.settings.get(key))).collect();
        lines.push(context! { key => key, values => text::count(values.len(), "seed", "seeds") });
    }
    lines
}

/// The ranking by the objective.
pub(super) fn best(run: &RunData) -> Option<Value> {
    let objective = run.objective.metric.as_str();
    let ranked = ranked_groups(run);
    let best_trial = *ranked_trials(run).first()?;
    let repeats = run.repeat_keys().next().is_some();
    let others: Vec<&str> = ["l0", "ce_loss_score", "explained_variance", "dead_share"]
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
        table = table.right(text::code(key));
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
            format!("{} ± {}", text::metric_value(name, mean), text::metric_value(name, sd))
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
    (freedom > 0).then(|| text::metric_value(&run.objective.metric, (squares / freedom as f64).sqrt()))
}

fn trial_value(run: &RunData, trial: &TrialRow) -> Value {
    let metric = |name: &str| trial.metric(name).map(|value| text::metric_value(name, value));
    let snippet = trial.snippet.trim_end();
    context! {
        id => trial.id.0.clone(),
        objective => metric(&run.objective.metric),
        l0 => metric("l0"),
        snippet => (!snippet.is_empty()).then_some(snippet),
        fence => text::fence(snippet),
        folder => format!("{}/trials/{}", run.folder, trial.id.0),
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
    let mut rows: Vec<(f64, usize)> = frontiers
        .iter()
        .flat_map(|frontier| frontier.points.iter().map(|point| (point.l0, point.row)))
        .collect();
    rows.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    rows.dedup();
    let mut table = TextTable::default().left("trial").right("L0");
    for frontier in frontiers {
        table = table.right(text::metric_title(frontier.metric));
    }
    table = table.right(text::metric_title("dead_share"));
    for key in &run.varied_keys {
        table = table.right(text::code(key));
    }
    for place in spread_over(rows.len(), MAX_FRONTIER_ROWS) {
        let row = rows[place].1;
        let trial = &run.trials[row];
        let mut cells = vec![text::code(&trial.id.0), text::metric_or_dash("l0", trial.metric("l0"))];
        for frontier in frontiers {
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
    let mut table = TextTable::default()
        .right(text::code(&effect.key))
        .right("done")
        .right("lost")
        .right(format!("mean {title}"))
        .right(format!("best {title}"))
        .right("mean L0")
        .right("dead latents")
        .right("on frontier");
    for level in effect.levels.iter().take(MAX_LEVEL_ROWS) {
        let done = level.objective.map_or(0, |spread| spread.n);
        table.row(vec![
            level_words(&level.range),
            format!("{done} of {}", level.planned),
            level.lost.to_string(),
            spread_words(objective, level.objective.map(|spread| Spread { sd: None, ..spread })),
            text::metric_or_dash(objective, level.best),
            text::metric_or_dash("l0", level.l0.map(|spread| spread.mean)),
            text::metric_or_dash("dead_share", level.dead_share),
            level.on_frontier.to_string(),
        ]);
    }
    context! {
        key => effect.key.clone(),
        table => table.to_value(),
        omitted => effect.levels.len().saturating_sub(MAX_LEVEL_ROWS),
        edge => edge_words(run, effect),
    }
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
        table = table.right(text::code(key));
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
            text::code(&store.hook),
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
