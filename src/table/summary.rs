//! Rankings: the best trials, and settings with their repeats over seeds taken together.

use super::{RunData, TrialRow};
use crate::metric::Goal;
use serde_json::Value;
use std::{cmp::Ordering, collections::BTreeMap};

/// The best finished trials by the sweep's objective, best first, at most [`RunData::top`]; equal ones in
/// plan order. Trials without a finite objective are never among them.
pub fn best_trials(run: &RunData) -> Vec<&TrialRow> {
    let mut scored: Vec<(&TrialRow, f64)> =
        run.trials.iter().filter_map(|trial| Some((trial, trial.metric(&run.objective.metric)?))).collect();
    scored.sort_by(|a, b| better_first(run, a.1, b.1));
    scored.into_iter().take(run.top).map(|(trial, _)| trial).collect()
}

/// Trials that differ in seeds alone.
#[derive(Debug, Clone, PartialEq)]
pub struct SettingGroup<'a> {
    /// All of them, in plan order.
    pub trials: Vec<&'a TrialRow>,
    /// The objective over the finished ones.
    pub objective: Spread,
}

/// Mean and spread of a metric over finished trials.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    /// Trials that have the metric.
    pub n: usize,
    /// Their mean.
    pub mean: f64,
    /// Their sample standard deviation, for two or more.
    pub sd: Option<f64>,
}

/// Mean and sample standard deviation of a metric; `None` when no trial has it.
pub fn spread<'a>(trials: impl IntoIterator<Item = &'a TrialRow>, metric: &str) -> Option<Spread> {
    let values: Vec<f64> = trials.into_iter().filter_map(|trial| trial.metric(metric)).collect();
    if values.is_empty() {
        return None;
    }
    let n = values.len();
    let mean = values.iter().sum::<f64>() / n as f64;
    let squares = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
    Some(Spread { n, mean, sd: (n > 1).then(|| (squares / (n - 1) as f64).sqrt()) })
}

/// Groups of trials that differ in seeds alone, ranked by their mean objective, best first. Groups without
/// a finite objective are left out.
pub fn ranked_groups(run: &RunData) -> Vec<SettingGroup<'_>> {
    let mut ranked: Vec<SettingGroup<'_>> = setting_groups(run)
        .into_iter()
        .filter_map(|trials| {
            let objective = spread(trials.iter().copied(), &run.objective.metric)?;
            Some(SettingGroup { trials, objective })
        })
        .collect();
    ranked.sort_by(|a, b| {
        better_first(run, a.objective.mean, b.objective.mean).then(a.trials[0].index.cmp(&b.trials[0].index))
    });
    ranked
}

/// Trials that differ in seeds alone stand together, in plan order.
pub(super) fn setting_groups(run: &RunData) -> Vec<Vec<&TrialRow>> {
    let mut groups: BTreeMap<String, Vec<&TrialRow>> = BTreeMap::new();
    for trial in &run.trials {
        let choice: Vec<&Value> =
            run.axis_keys().map(|key| trial.settings.get(key).unwrap_or(&Value::Null)).collect();
        groups.entry(format!("{choice:?}")).or_default().push(trial);
    }
    groups.into_values().collect()
}

fn better_first(run: &RunData, a: f64, b: f64) -> Ordering {
    match run.objective.goal {
        Goal::Maximize => b.total_cmp(&a),
        Goal::Minimize => a.total_cmp(&b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{Outcome, samples};

    #[test]
    fn not_a_number_is_never_best() {
        for goal in [Goal::Maximize, Goal::Minimize] {
            let mut run = samples::grid_run();
            run.objective.goal = goal;
            let (first, second) = (best_trials(&run)[0].index, best_trials(&run)[1].index);
            for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -f64::NAN] {
                run.trials[first].metrics.insert("ce_loss_score".to_owned(), bad);
                assert_eq!(best_trials(&run)[0].index, second);
                assert!(best_trials(&run).iter().all(|trial| trial.index != first));
            }
        }
    }

    #[test]
    fn unfinished_trials_are_never_best() {
        let mut run = samples::grid_run();
        let first = best_trials(&run)[0].index;
        run.trials[first].outcome = Outcome::Failed;
        assert_ne!(best_trials(&run)[0].index, first);
    }

    #[test]
    fn repeats_are_taken_together() {
        let run = samples::repeats_run();
        let groups = ranked_groups(&run);
        assert!(groups.iter().all(|group| group.trials.len() == 3));
        let best = &groups[0];
        let values: Vec<f64> = best.trials.iter().map(|trial| trial.metrics["ce_loss_score"]).collect();
        let mean = values.iter().sum::<f64>() / 3.0;
        let sd = (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / 2.0).sqrt();
        assert!((best.objective.mean - mean).abs() < 1e-15);
        assert!((best.objective.sd.unwrap() - sd).abs() < 1e-15);
    }

    #[test]
    fn one_value_has_no_spread() {
        let run = samples::grid_run();
        let one = spread(&run.trials[..1], "l0").unwrap();
        assert_eq!((one.n, one.sd), (1, None));
        assert_eq!(spread(&run.trials[..0], "l0"), None);
    }
}
