//! What every axis does: the trials of a run by one setting's values, all else averaged over.
//!
//! [`axis_effects`] gives one [`AxisEffect`] per varied setting. Where the best choice of the whole sweep
//! lies on the outermost value that was tried, the effect carries an [`Edge`] with the next value to try.
//!
//! A mean over trials of different sparsity mostly shows who is densest. [`Level::gap`] is the fair measure:
//! how far trials lie below the frontier at their own L0.

use super::{FRONTIER_METRICS, Frontier, Outcome, RunData, Spread, TrialRow};
use super::{compare_settings, is_sparsity_key, ranked_groups, spread};
use serde_json::Value;

/// More values than this are shown as ranges.
const MAX_LEVELS: usize = 8;
/// Ranges when there are too many values.
const RANGES: usize = 5;

/// One axis of the sweep.
#[derive(Debug, Clone, PartialEq)]
pub struct AxisEffect {
    /// Dotted key of the setting.
    pub key: String,
    /// Whether its values have an order.
    pub kind: AxisKind,
    /// Its values or ranges of them, in order.
    pub levels: Vec<Level>,
    /// Set when the best choice lies on the outermost value.
    pub edge: Option<Edge>,
    /// For numeric settings that do not set the sparsity: the level that lies closest to the frontier.
    pub closest: Option<Closest>,
}

/// The level of an axis with the smallest mean [`Level::gap`].
#[derive(Debug, Clone, PartialEq)]
pub struct Closest {
    /// Its place in [`AxisEffect::levels`].
    pub level: usize,
    /// Set when it is the outermost one and no other is as close.
    pub edge: Option<Edge>,
}

/// Whether the values of an axis have an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AxisKind {
    /// Numbers.
    Numeric,
    /// Names, in the order in which the plan brings them.
    Categorical,
}

/// The trials with one value, or with values in one range.
#[derive(Debug, Clone, PartialEq)]
pub struct Level {
    /// Which values.
    pub range: LevelRange,
    /// Trials planned.
    pub planned: usize,
    /// Of these, diverged or failed.
    pub lost: usize,
    /// Objective of the finished ones.
    pub objective: Option<Spread>,
    /// Best objective.
    pub best: Option<f64>,
    /// L0 of the finished ones.
    pub l0: Option<Spread>,
    /// Mean share of dead latents.
    pub dead_share: Option<f64>,
    /// How many of them are on the frontier of L0 and CE-loss score, or where no trial has that, of L0 and
    /// explained variance.
    pub on_frontier: usize,
    /// How far the finished ones lie below that frontier at their own L0, on average.
    pub gap: Option<f64>,
}

/// The values of a level.
#[derive(Debug, Clone, PartialEq)]
pub enum LevelRange {
    /// This one; null for trials that lack the setting.
    One(Value),
    /// Numbers from the first to the second, both included.
    Between(f64, f64),
}

/// The best choice lies on the outermost value of an axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Edge {
    /// Which end.
    pub side: Side,
    /// The best choice's value.
    pub value: f64,
    /// The next value beyond it in the axis' own spacing, where there can be one.
    pub next: Option<f64>,
    /// The axis has two values only, so that any best lies on an edge.
    pub two_values: bool,
    /// The axis sets the sparsity and the best value is its densest: better fidelity there is no finding.
    pub along_frontier: bool,
}

/// An end of an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Its smallest value.
    Lower,
    /// Its largest value.
    Upper,
}

/// The effects of all varied settings except seeds, in the order of [`RunData::varied_keys`].
pub fn axis_effects(run: &RunData, frontiers: &[Frontier]) -> Vec<AxisEffect> {
    let frontier = FRONTIER_METRICS
        .iter()
        .filter_map(|metric| frontiers.iter().find(|frontier| frontier.metric == *metric))
        .find(|frontier| !frontier.points.is_empty());
    let mut standing = vec![Standing::default(); run.trials.len()];
    if let Some(frontier) = frontier {
        for point in &frontier.points {
            standing[point.row].on_frontier = true;
        }
        for (trial, standing) in run.trials.iter().zip(&mut standing) {
            let bound = trial.metric("l0").and_then(|l0| frontier.at(l0));
            standing.gap =
                bound.zip(trial.metric(frontier.metric)).map(|(bound, own)| (bound - own).max(0.0));
        }
    }
    let best = ranked_groups(run).into_iter().next().map(|group| group.trials[0]);
    run.axis_keys().map(|key| axis_effect(run, key, &standing, best)).collect()
}

/// Where a trial stands against the frontier.
#[derive(Debug, Clone, Copy, Default)]
struct Standing {
    on_frontier: bool,
    gap: Option<f64>,
}

fn axis_effect(run: &RunData, key: &str, standing: &[Standing], best: Option<&TrialRow>) -> AxisEffect {
    let value_of = |trial: &TrialRow| trial.settings.get(key).cloned().unwrap_or(Value::Null);
    let mut values: Vec<Value> = Vec::new();
    for trial in &run.trials {
        let value = value_of(trial);
        if !values.iter().any(|known| compare_settings(known, &value).is_eq()) {
            values.push(value);
        }
    }
    let numeric = values.iter().any(Value::is_number) && values.iter().all(|v| v.is_number() || v.is_null());
    if numeric {
        values.sort_by(compare_settings);
    }
    let numbers: Vec<f64> = values.iter().filter_map(Value::as_f64).collect();
    let binned = numeric && numbers.len() > MAX_LEVELS;
    let ranges: Vec<LevelRange> = if binned {
        let absent = values.iter().any(Value::is_null).then_some(LevelRange::One(Value::Null));
        absent.into_iter().chain(equal_ranges(&numbers)).collect()
    } else {
        values.into_iter().map(LevelRange::One).collect()
    };
    let levels: Vec<Level> = ranges
        .into_iter()
        .map(|range| {
            let rows: Vec<usize> =
                (0..run.trials.len()).filter(|&row| contains(&range, &value_of(&run.trials[row]))).collect();
            level(run, range, &rows, standing)
        })
        .collect();
    let best = best.map(value_of).filter(|_| numeric);
    let edge = best.and_then(|value| edge_at(key, value.as_f64()?, &numbers, &levels, binned));
    let closest = if numeric && !is_sparsity_key(key) {
        closest(&levels).map(|level| {
            let value = match &levels[level].range {
                LevelRange::One(value) => value.as_f64(),
                LevelRange::Between(from, _) => Some(*from),
            };
            let gap_of = |level: &Level| level.gap.unwrap_or(f64::INFINITY);
            let alone =
                levels.iter().filter(|other| gap_of(other) <= gap_of(&levels[level]) + 1e-9).count() == 1;
            let value = value.filter(|_| alone);
            Closest { level, edge: value.and_then(|value| edge_at(key, value, &numbers, &levels, binned)) }
        })
    } else {
        None
    };
    let kind = if numeric { AxisKind::Numeric } else { AxisKind::Categorical };
    AxisEffect { key: key.to_owned(), kind, levels, edge, closest }
}

/// The level that has a value and the smallest gap.
fn closest(levels: &[Level]) -> Option<usize> {
    let gaps = levels.iter().enumerate().filter(|(_, level)| level.range != LevelRange::One(Value::Null));
    let with_gap = gaps.filter_map(|(i, level)| Some((i, level.gap?)));
    with_gap.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(i, _)| i)
}

fn level(run: &RunData, range: LevelRange, rows: &[usize], standing: &[Standing]) -> Level {
    let trials = || rows.iter().map(|&row| &run.trials[row]);
    let gaps: Vec<f64> = rows.iter().filter_map(|&row| standing[row].gap).collect();
    let scores = trials().filter_map(|trial| trial.metric(&run.objective.metric));
    Level {
        range,
        planned: rows.len(),
        lost: trials().filter(|trial| matches!(trial.outcome, Outcome::Diverged | Outcome::Failed)).count(),
        objective: spread(trials(), &run.objective.metric),
        best: scores.reduce(|best, score| if run.is_better(score, best) { score } else { best }),
        l0: spread(trials(), "l0"),
        dead_share: spread(trials(), "dead_share").map(|spread| spread.mean),
        on_frontier: rows.iter().filter(|&&row| standing[row].on_frontier).count(),
        gap: (!gaps.is_empty()).then(|| gaps.iter().sum::<f64>() / gaps.len() as f64),
    }
}

fn contains(range: &LevelRange, value: &Value) -> bool {
    match range {
        LevelRange::One(one) => compare_settings(one, value).is_eq(),
        LevelRange::Between(from, to) => {
            value.as_f64().is_some_and(|number| *from <= number && number <= *to)
        }
    }
}

/// Ranges with as equal numbers of distinct values as can be; `sorted` holds more than [`RANGES`].
fn equal_ranges(sorted: &[f64]) -> Vec<LevelRange> {
    (0..RANGES)
        .map(|i| {
            let (start, end) = (i * sorted.len() / RANGES, (i + 1) * sorted.len() / RANGES);
            LevelRange::Between(sorted[start], sorted[end - 1])
        })
        .collect()
}

/// `sorted` holds all planned values, also those at which every trial was lost: an end that was tried and
/// failed is not beyond the axis.
fn edge_at(key: &str, best: f64, sorted: &[f64], levels: &[Level], binned: bool) -> Option<Edge> {
    if sorted.len() < 2 {
        return None;
    }
    let numeric_levels = levels.iter().filter(|level| level.range != LevelRange::One(Value::Null));
    let in_level = |level: &&Level| match &level.range {
        LevelRange::One(value) => value.as_f64() == Some(best),
        LevelRange::Between(from, to) => *from <= best && best <= *to,
    };
    let side = if numeric_levels.clone().next().as_ref().is_some_and(in_level) {
        Side::Lower
    } else if numeric_levels.clone().next_back().as_ref().is_some_and(in_level) {
        Side::Upper
    } else {
        return None;
    };
    let l0_of = |level: &Level| level.l0.map_or(f64::NEG_INFINITY, |l0| l0.mean);
    let densest = levels.iter().map(l0_of).fold(f64::NEG_INFINITY, f64::max);
    let along_frontier =
        is_sparsity_key(key) && levels.iter().find(in_level).is_some_and(|l| l0_of(l) >= densest);
    let next = next_value(sorted, side, binned).filter(|&next| !(is_share(key) && next >= 1.0));
    Some(Edge { side, value: best, next, two_values: sorted.len() == 2, along_frontier })
}

fn is_share(key: &str) -> bool {
    key.contains("beta") || key.contains("fraction")
}

/// The value that goes on beyond the end of an axis in its own spacing, geometric or arithmetic, rounded to
/// two digits (to a whole number where all values are whole).
fn next_value(sorted: &[f64], side: Side, binned: bool) -> Option<f64> {
    let n = sorted.len();
    let (first, last) = (sorted[0], sorted[n - 1]);
    let parts = RANGES as f64;
    let geometric = first > 0.0 && if binned { last / first > 20.0 } else { spaced_by_ratio(sorted) };
    let raw = match (geometric, side) {
        (true, Side::Upper) if binned => last * (last / first).powf(1.0 / parts),
        (true, Side::Lower) if binned => first / (last / first).powf(1.0 / parts),
        (true, Side::Upper) => last * (last / sorted[n - 2]),
        (true, Side::Lower) => first / (sorted[1] / first),
        (false, Side::Upper) if binned => last + (last - first) / parts,
        (false, Side::Lower) if binned => first - (last - first) / parts,
        (false, Side::Upper) => last + (last - sorted[n - 2]),
        (false, Side::Lower) => first - (sorted[1] - first),
    };
    let whole = sorted.iter().all(|value| value.fract() == 0.0);
    let next = if whole && raw.abs() >= 1.0 { raw.round() } else { two_digits(raw) };
    // Settings that are nowhere negative, or nowhere zero, stay so.
    let allowed = if first > 0.0 { next > 0.0 } else { first < 0.0 || next >= 0.0 };
    (next.is_finite() && allowed && next != first && next != last).then_some(next)
}

/// Whether neighbouring values differ by a more constant factor than difference.
fn spaced_by_ratio(sorted: &[f64]) -> bool {
    let uneven = |gaps: Vec<f64>| {
        let largest = gaps.iter().copied().fold(f64::MIN, f64::max);
        largest / gaps.iter().copied().fold(f64::MAX, f64::min)
    };
    if sorted.len() == 2 {
        return sorted[1] / sorted[0] >= 1.5;
    }
    let ratios = sorted.windows(2).map(|pair| (pair[1] / pair[0]).ln()).collect();
    let differences = sorted.windows(2).map(|pair| pair[1] - pair[0]).collect();
    uneven(ratios) <= uneven(differences)
}

fn two_digits(value: f64) -> f64 {
    format!("{value:.1e}").parse().expect("invariant: a formatted number parses")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{frontiers, samples};

    fn effects(run: &RunData) -> Vec<AxisEffect> {
        axis_effects(run, &frontiers(run))
    }

    #[test]
    fn every_trial_is_in_one_level_of_every_axis() {
        for run in [samples::grid_run(), samples::repeats_run(), samples::random_run(60)] {
            for effect in effects(&run) {
                let planned: usize = effect.levels.iter().map(|level| level.planned).sum();
                assert_eq!(planned, run.trials.len(), "{}", effect.key);
                assert!(effect.levels.len() <= MAX_LEVELS);
                for level in &effect.levels {
                    assert!(level.objective.map_or(0, |spread| spread.n) + level.lost <= level.planned);
                }
            }
        }
    }

    #[test]
    fn frontier_counts_add_up() {
        let run = samples::grid_run();
        let on_it = frontiers(&run)[0].points.len();
        for effect in effects(&run) {
            assert_eq!(effect.levels.iter().map(|level| level.on_frontier).sum::<usize>(), on_it);
        }
    }

    #[test]
    fn an_end_at_which_all_diverged_is_no_edge() {
        let mut run = samples::grid_run();
        let largest =
            run.trials.iter().map(|trial| trial.settings["train.lr"].as_f64().unwrap()).fold(0.0, f64::max);
        for trial in &mut run.trials {
            if trial.settings["train.lr"].as_f64() == Some(largest) {
                trial.outcome = Outcome::Diverged;
            }
        }
        let effect = effects(&run).into_iter().find(|effect| effect.key == "train.lr").unwrap();
        assert_ne!(effect.edge.map(|edge| edge.side), Some(Side::Upper));
    }

    #[test]
    fn no_finished_trial_means_no_edge() {
        let mut run = samples::grid_run();
        for trial in &mut run.trials {
            trial.outcome = Outcome::Pending;
        }
        assert!(effects(&run).iter().all(|effect| effect.edge.is_none()));
    }

    #[test]
    fn gaps_are_measured_at_the_same_l0() {
        let run = samples::grid_run();
        let effect = effects(&run).into_iter().find(|effect| effect.key == "train.lr").unwrap();
        // Low rates are denser and so look better by their mean; at their own L0 they are the worst.
        let gaps: Vec<f64> = effect.levels.iter().map(|level| level.gap.unwrap()).collect();
        assert!(gaps[0] > gaps[1] && gaps[0] > gaps[2], "{gaps:?}");
        let closest = effect.closest.unwrap();
        assert!(gaps.iter().all(|gap| *gap >= gaps[closest.level]));
        let sparsity = effects(&run).into_iter().find(|effect| effect.key == "sae.l1_coefficient").unwrap();
        assert_eq!(sparsity.closest, None);
    }

    #[test]
    fn names_have_no_edge() {
        let mut run = samples::grid_run();
        run.varied_keys = vec!["sae.architecture".to_owned()];
        let effect = &effects(&run)[0];
        assert_eq!((effect.kind, &effect.edge), (AxisKind::Categorical, &None));
    }

    #[test]
    fn the_next_value_keeps_the_spacing() {
        let check = |values: &[f64], side, expected: Option<f64>| {
            assert_eq!(next_value(values, side, false), expected, "{values:?}");
        };
        check(&[1e-5, 1e-4, 1e-3], Side::Lower, Some(1e-6));
        check(&[1e-5, 1e-4, 1e-3], Side::Upper, Some(1e-2));
        check(&[1.0, 2.0, 5.0, 10.0], Side::Upper, Some(20.0));
        check(&[8192.0, 16384.0], Side::Upper, Some(32768.0));
        check(&[100.0, 200.0, 300.0], Side::Upper, Some(400.0));
        check(&[100.0, 200.0, 300.0], Side::Lower, None);
        check(&[0.0, 0.5, 1.0], Side::Lower, None);
        check(&[0.0, 0.5, 1.0], Side::Upper, Some(1.5));
        check(&[1.0, 2.0], Side::Lower, Some(0.5));
        check(&[5e-5, 2e-4, 8e-4], Side::Lower, Some(1.3e-5));
    }

    #[test]
    fn many_values_become_ranges() {
        let run = samples::random_run(60);
        let effect = effects(&run).into_iter().find(|effect| effect.key == "train.lr").unwrap();
        assert_eq!(effect.levels.len(), RANGES);
        assert!(effect.levels.iter().all(|level| level.planned == 12));
    }
}
