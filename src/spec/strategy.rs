//! What the strategy asks for: which settings go with it, and its combinations within `sweep.max_trials`.

use super::{
    config::{Objective, Strategy},
    error::{Fault, Place, Problem},
    expand::{Expander, Parts, n_combinations},
    keys::listed,
    sections::Fixed,
    setting::Setting,
    suggest,
    variation::{Rows, Variation},
};
use crate::metric::{Goal, METRICS, metric};

/// Combinations beyond this many for each allowed trial are not even looked at, whatever an exclude may say.
const MAX_COMBINATIONS_PER_TRIAL: usize = 100;

/// The strategy, if it is one.
pub(crate) fn strategy(fixed: &Fixed) -> Option<Strategy> {
    match fixed.get("sweep.strategy")?.as_text()? {
        "grid" => Some(Strategy::Grid),
        "random" => Some(Strategy::Random),
        "list" => Some(Strategy::List),
        _ => None,
    }
}

/// The objective, with the goal that its metric has where none is given.
pub(crate) fn objective(fixed: &Fixed, problems: &mut Vec<Problem>) -> Option<Objective> {
    let name = fixed.get("sweep.objective.metric")?.as_text()?;
    let place = fixed.place("sweep.objective.metric")?.clone();
    let Some(metric) = metric(name) else {
        let names: Vec<&str> = METRICS.iter().map(|metric| metric.name).collect();
        problems.push(Problem {
            place,
            key: "sweep.objective.metric".to_owned(),
            fault: Fault::UnknownValue,
            found: format!("\"{name}\""),
            expected: format!("one of {}", listed(&names)),
            hint: suggest::word(name, names.iter().copied()),
        });
        return None;
    };
    let goal = match fixed.get("sweep.objective.goal")? {
        Setting::Text(word) if word == "maximize" => Goal::Maximize,
        Setting::Text(_) => Goal::Minimize,
        _ => match metric.goal {
            Some(goal) => goal,
            None => {
                problems.push(Problem {
                    place,
                    key: "sweep.objective.goal".to_owned(),
                    fault: Fault::Missing,
                    found: format!("\"{name}\" without a goal"),
                    expected:
                        "one of \"maximize\", \"minimize\": this metric has no better direction by itself"
                            .to_owned(),
                    hint: Some(format!("objective = {{ metric = \"{name}\", goal = \"minimize\" }}")),
                });
                return None;
            }
        },
    };
    Some(Objective { metric: name.to_owned(), goal })
}

/// Combinations beyond this many are not looked at in any case; each takes some microseconds.
const MAX_COMBINATIONS: usize = 1_000_000;

/// Reports settings that belong to another strategy.
pub(crate) fn fit_strategy(strategy: Strategy, parts: Parts<'_>, problems: &mut Vec<Problem>) {
    let Parts { layers, fixed, variation } = parts;
    let strategy_place = || match fixed.place("sweep.strategy") {
        Some(Place::Default) | None => layers.file_place("sweep"),
        Some(place) => place.clone(),
    };
    let mut problem = |place: Place, key: &str, found: String, expected: &str, hint: Option<&str>| {
        problems.push(Problem {
            place,
            key: key.to_owned(),
            fault: Fault::OtherStrategy,
            found,
            expected: expected.to_owned(),
            hint: hint.map(str::to_owned),
        });
    };
    let n_trials = fixed.values.get("sweep.trials");
    if strategy != Strategy::Random
        && let Some((setting, place)) = n_trials
    {
        let found = format!("sweep.trials = {} with strategy \"{}\"", setting.to_toml(), strategy.word());
        let hint = "a grid's size follows from its axes; sweep.max_trials is the limit";
        problem(place.clone(), "sweep.trials", found, "strategy = \"random\"", Some(hint));
    }
    let searched = || variation.dimensions.iter().filter(|dimension| !dimension.repeats);
    match strategy {
        Strategy::Grid => {
            for dimension in searched().filter(|dimension| matches!(dimension.rows, Rows::Range(_))) {
                let key = dimension.keys[0];
                let axis = variation.axes.iter().find(|axis| axis.key == key);
                let found = axis.map_or_else(String::new, |axis| axis.definition.clone());
                let expected = "for a grid a list of values, or linear or log with steps";
                let place = variation.places.get(key).cloned().unwrap_or_else(strategy_place);
                problem(
                    place,
                    &format!("axes.{key}"),
                    found,
                    expected,
                    Some("ranges are drawn from with strategy = \"random\""),
                );
            }
        }
        Strategy::Random => {
            if n_trials.is_none() && !fixed.broken.contains("sweep.trials") {
                let found = "strategy \"random\" without sweep.trials".to_owned();
                problem(
                    strategy_place(),
                    "sweep.trials",
                    found,
                    "how many draws, for example trials = 40",
                    None,
                );
            }
            if searched().next().is_none() && !variation.incomplete {
                let found = "strategy \"random\" without an axis to draw from".to_owned();
                problem(
                    strategy_place(),
                    "sweep.strategy",
                    found,
                    "at least one axis that is not a repeat",
                    None,
                );
            }
        }
        Strategy::List => {
            if variation.given.is_empty() && !variation.incomplete {
                let found = "strategy \"list\" without a [[trial]]".to_owned();
                problem(strategy_place(), "sweep.strategy", found, "at least one [[trial]]", None);
            }
            for key in searched().flat_map(|dimension| dimension.keys.iter().copied()) {
                let place = variation.places.get(key).cloned().unwrap_or_else(strategy_place);
                let hint = "strategy = \"grid\" runs the axes and the [[trial]] tables, too";
                let is_axis = variation.axes.iter().any(|axis| axis.key == key);
                let path = format!("{}.{key}", if is_axis { "axes" } else { "zip" });
                problem(
                    place,
                    &path,
                    "an axis with strategy \"list\"".to_owned(),
                    "[[trial]] tables, and repeats of seeds",
                    Some(hint),
                );
            }
        }
    }
}

impl Strategy {
    /// The word users write.
    pub fn word(self) -> &'static str {
        match self {
            Self::Grid => "grid",
            Self::Random => "random",
            Self::List => "list",
        }
    }
}

/// The most trials a sweep may have.
pub(crate) fn max_trials(fixed: &Fixed) -> usize {
    let max_trials = fixed.get("sweep.max_trials").and_then(Setting::as_int).unwrap_or(1000);
    usize::try_from(max_trials).unwrap_or(usize::MAX)
}

/// The problem of a sweep that is larger than `sweep.max_trials`.
pub(crate) fn too_many(count: &str, parts: Parts<'_>) -> Problem {
    let Parts { layers, fixed, variation } = parts;
    let default_place = || layers.file_place(if layers.dict.contains_key("axes") { "axes" } else { "sweep" });
    Problem {
        place: match fixed.place("sweep.max_trials") {
            Some(Place::Default) | None => default_place(),
            Some(place) => place.clone(),
        },
        key: "sweep.max_trials".to_owned(),
        fault: Fault::TooMany,
        found: format!("{count}{}", sizes(variation)),
        expected: format!("at most {} trials", max_trials(fixed)),
        hint: Some(
            "take fewer values, draw with strategy = \"random\", or raise sweep.max_trials".to_owned(),
        ),
    }
}

/// Lets the strategy make its combinations. Too many to be looked at is the one problem here; what is wrong
/// with the combinations, the expander has. Notes are for the user.
pub(crate) fn combine(
    strategy: Option<Strategy>,
    expander: &mut Expander<'_>,
    notes: &mut Vec<String>,
) -> Result<(), Box<Problem>> {
    let parts = expander.parts();
    let Parts { fixed, variation, .. } = parts;
    let max_trials = max_trials(fixed);
    let limit = max_trials.saturating_mul(MAX_COMBINATIONS_PER_TRIAL).min(MAX_COMBINATIONS);
    match strategy {
        Some(Strategy::Grid) | None => {
            let n = n_combinations(variation.dimensions.iter());
            match n.filter(|n| *n <= limit) {
                Some(_) => expander.grid(),
                None => {
                    let count = n.map_or_else(|| "more than 2^64".to_owned(), |n| n.to_string());
                    return Err(Box::new(too_many(&format!("{count} combinations"), parts)));
                }
            }
        }
        Some(Strategy::Random) => {
            let n = fixed.get("sweep.trials").and_then(Setting::as_int).unwrap_or(1);
            let n = usize::try_from(n).unwrap_or(usize::MAX);
            let repeats = n_combinations(variation.dimensions.iter().filter(|dimension| dimension.repeats));
            let repeats = repeats.unwrap_or(usize::MAX);
            if n.checked_mul(repeats).is_none_or(|total| total > max_trials) {
                let times = if repeats == 1 { String::new() } else { format!(", each {repeats} times") };
                return Err(Box::new(too_many(&format!("{n} draws{times}"), parts)));
            }
            let n_kept = expander.random(n, fixed.get("sweep.seed").and_then(Setting::as_int).unwrap_or(0));
            if n_kept < n && n_kept > 0 {
                notes.push(format!(
                    "only {n_kept} of {n} draws: there seem to be no more that differ and are not excluded"
                ));
            }
        }
        Some(Strategy::List) => {}
    }
    let repeats = n_combinations(variation.dimensions.iter().filter(|dimension| dimension.repeats));
    let n_given = repeats.and_then(|repeats| repeats.checked_mul(variation.given.len()));
    if n_given.is_none_or(|n| n > limit) {
        return Err(Box::new(too_many(&format!("{} [[trial]] tables", variation.given.len()), parts)));
    }
    expander.given();
    Ok(())
}

/// ` (4 sae.l1_coefficient × 5 train.lr)`.
fn sizes(variation: &Variation<'_>) -> String {
    let sizes: Vec<String> = variation
        .dimensions
        .iter()
        .filter_map(|dimension| match &dimension.rows {
            Rows::Finite(rows) => Some(format!("{} {}", rows.len(), dimension.keys.join("+"))),
            Rows::Range(_) => None,
        })
        .collect();
    if sizes.is_empty() { String::new() } else { format!(" ({})", sizes.join(" × ")) }
}
