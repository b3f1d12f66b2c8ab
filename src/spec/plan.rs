//! The way from a sweep file to a plan. Start with [`load`].

use super::{
    config::{
        Objective, Strategy, SweepSection, SweepSpec, devices, int, optional_text, report_section,
        run_config, size, text,
    },
    error::{Fault, Place, Problem, SpecErrors},
    expand::{Expander, Origin, n_combinations},
    expressions::environment,
    identity::flat,
    keys::{Presence, Used, find, listed, trial_keys},
    layers::{Layers, read_layers},
    resolved::resolved,
    sections::{Fixed, missing, read_sections, require_sweep_settings},
    setting::Setting,
    source::SpecSource,
    suggest,
    variation::{Rows, Variation, read_variation},
};
use crate::{
    metric::{Goal, METRICS, metric},
    trial::{TrialConfig, TrialId},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

/// A trial of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedTrial {
    /// Hash of its configuration.
    pub id: TrialId,
    /// Place in the plan, from 0.
    pub index: usize,
    /// Its complete configuration.
    pub config: TrialConfig,
    /// Its values of the settings that vary, by full dotted key; a setting that its architecture does not use
    /// is absent.
    pub varied: BTreeMap<String, serde_json::Value>,
}

/// A sweep and its trials.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Everything but the trials.
    pub spec: SweepSpec,
    /// In order; ids are unique.
    pub trials: Vec<PlannedTrial>,
    /// Settings that take more than one value, in the order of the file. What `[derive]` and `auto` give
    /// follows from these and is not among them.
    pub varied_keys: Vec<String>,
    /// What the user should know: what was left out, fixed from outside, or drawn in vain.
    pub notes: Vec<String>,
}

/// Combinations beyond this many for each allowed trial are not even looked at, whatever an exclude may say.
const MAX_COMBINATIONS_PER_TRIAL: usize = 100;

/// Reads a sweep: layers, settings, what varies, trials. Pure: the same source gives the same plan anywhere.
///
/// # Errors
///
/// Everything that is wrong, together.
pub fn load(source: &SpecSource) -> Result<Plan, SpecErrors> {
    let mut problems = Vec::new();
    let layers = read_layers(source, &mut problems);
    let unreadable = |problem: &Problem| {
        problem.fault == Fault::Syntax && matches!(problem.place, Place::File { .. })
    };
    if problems.iter().any(unreadable) {
        return Err(SpecErrors::new(&source.path, problems));
    }
    let fixed = read_sections(&layers, &mut problems);
    require_sweep_settings(&fixed, &layers, &mut problems);
    let environment = environment();
    let mut variation = read_variation(&layers, &fixed, &environment, &mut problems);
    let mut notes = std::mem::take(&mut variation.notes);
    let objective = objective(&fixed, &mut problems);
    let strategy = strategy(&fixed);
    if let Some(strategy) = strategy {
        fit_strategy(strategy, &fixed, &variation, &layers, &mut problems);
    }
    require_trial_settings(&fixed, &variation, &layers, &mut problems);
    let mut expander = Expander::new(&layers, &fixed, &variation);
    expand(strategy, &fixed, &mut expander, &variation, &layers, &mut notes, &mut problems);
    if !problems.is_empty() {
        return Err(SpecErrors::new(&source.path, problems));
    }
    let (Some(objective), Some(strategy)) = (objective, strategy) else {
        unreachable!("invariant: without problems there are objective and strategy");
    };
    let trials = planned(&expander);
    let varied_keys = varied_keys(&trials, &variation);
    let trials = with_varied(trials, &varied_keys);
    notes.extend(exclude_notes(&expander, &variation));
    notes.extend(store_note(&trials));
    let sweep = SweepSection {
        name: text(&fixed, "sweep.name"),
        strategy,
        trials: fixed.get("sweep.trials").map(|_| size(&fixed, "sweep.trials")),
        seed: int(&fixed, "sweep.seed"),
        max_trials: size(&fixed, "sweep.max_trials"),
        objective,
    };
    let spec = SweepSpec {
        sweep,
        run: run_config(&fixed),
        devices: devices(&fixed),
        report: report_section(&fixed),
        stores_dir: optional_text(&fixed, "store.dir"),
        axes: variation.axes.clone(),
        source_dir: Path::new(&source.path).parent().unwrap_or(Path::new("")).to_owned(),
        resolved: resolved(&source.path, &layers, &fixed, &variation, &trials),
        given_outside: given_outside(&fixed),
    };
    Ok(Plan { spec, trials, varied_keys, notes })
}

/// Texts that came from the command line or the environment.
fn given_outside(fixed: &Fixed) -> BTreeSet<String> {
    let outside = fixed.values.values().filter(|(_, place)| place.height() >= 2);
    outside.filter_map(|(setting, _)| setting.as_text().map(str::to_owned)).collect()
}

fn strategy(fixed: &Fixed) -> Option<Strategy> {
    match fixed.get("sweep.strategy")?.as_text()? {
        "grid" => Some(Strategy::Grid),
        "random" => Some(Strategy::Random),
        "list" => Some(Strategy::List),
        _ => None,
    }
}

fn objective(fixed: &Fixed, problems: &mut Vec<Problem>) -> Option<Objective> {
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
                    expected: "one of \"maximize\", \"minimize\": this metric has no better direction by itself".to_owned(),
                    hint: Some(format!("objective = {{ metric = \"{name}\", goal = \"minimize\" }}")),
                });
                return None;
            }
        },
    };
    Some(Objective { metric: name.to_owned(), goal })
}

/// Reports settings that belong to another strategy.
fn fit_strategy(
    strategy: Strategy,
    fixed: &Fixed,
    variation: &Variation<'_>,
    layers: &Layers,
    problems: &mut Vec<Problem>,
) {
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
                problem(place, &format!("axes.{key}"), found, expected, Some("ranges are drawn from with strategy = \"random\""));
            }
        }
        Strategy::Random => {
            if n_trials.is_none() && !fixed.broken.contains("sweep.trials") {
                let found = "strategy \"random\" without sweep.trials".to_owned();
                problem(strategy_place(), "sweep.trials", found, "how many draws, for example trials = 40", None);
            }
            if searched().next().is_none() && !variation.incomplete {
                let found = "strategy \"random\" without an axis to draw from".to_owned();
                problem(strategy_place(), "sweep.strategy", found, "at least one axis that is not a repeat", None);
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
                problem(place, key, "an axis with strategy \"list\"".to_owned(), "[[trial]] tables, and repeats of seeds", Some(hint));
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

/// Reports required settings of trials that nothing gives at all.
fn require_trial_settings(fixed: &Fixed, variation: &Variation<'_>, layers: &Layers, problems: &mut Vec<Problem>) {
    for key in trial_keys().filter(|key| key.presence == Presence::Required) {
        let is_given = fixed.get(key.name).is_some()
            || fixed.broken.contains(key.name)
            || variation.broken.contains(key.name)
            || variation.places.contains_key(key.name)
            || variation.given.iter().any(|given| given.settings.contains_key(key.name));
        if !is_given {
            problems.push(missing(key, layers));
        }
    }
}

/// Lets the strategy make its combinations and judges the whole of them.
fn expand(
    strategy: Option<Strategy>,
    fixed: &Fixed,
    expander: &mut Expander<'_>,
    variation: &Variation<'_>,
    layers: &Layers,
    notes: &mut Vec<String>,
    problems: &mut Vec<Problem>,
) {
    let max_trials = fixed.get("sweep.max_trials").and_then(Setting::as_int).unwrap_or(1000);
    let max_trials = usize::try_from(max_trials).unwrap_or(usize::MAX);
    let limit = max_trials.saturating_mul(MAX_COMBINATIONS_PER_TRIAL);
    let too_many = |found: String| Problem {
        place: match fixed.place("sweep.max_trials") {
            Some(Place::Default) | None => {
                layers.file_place(if layers.dict.contains_key("axes") { "axes" } else { "sweep" })
            }
            Some(place) => place.clone(),
        },
        key: "sweep.max_trials".to_owned(),
        fault: Fault::TooMany,
        found,
        expected: format!("at most {max_trials} trials"),
        hint: Some("take fewer values, draw with strategy = \"random\", or raise sweep.max_trials".to_owned()),
    };
    match strategy {
        Some(Strategy::Grid) | None => {
            let n = n_combinations(variation.dimensions.iter());
            match n.filter(|n| *n <= limit) {
                Some(_) => expander.grid(),
                None if variation.incomplete => {}
                None => {
                    let count = n.map_or_else(|| "more than 2^64".to_owned(), |n| n.to_string());
                    problems.push(too_many(format!("{count} combinations{}", sizes(variation))));
                    return;
                }
            }
        }
        Some(Strategy::Random) => {
            let n = fixed.get("sweep.trials").and_then(Setting::as_int).and_then(|n| usize::try_from(n).ok());
            let n_repeats = n_combinations(variation.dimensions.iter().filter(|dimension| dimension.repeats));
            let total = n.unwrap_or(1).checked_mul(n_repeats.unwrap_or(usize::MAX));
            if total.is_none_or(|total| total > max_trials) {
                let found = format!("{} draws, each {} times", n.unwrap_or(1), n_repeats.unwrap_or(usize::MAX));
                problems.push(too_many(found));
                return;
            }
            let n = n.unwrap_or(1);
            let n_kept = expander.random(n, fixed.get("sweep.seed").and_then(Setting::as_int).unwrap_or(0));
            if n_kept < n && n_kept > 0 {
                notes.push(format!("only {n_kept} of {n} draws: there seem to be no more that differ and are not excluded"));
            }
        }
        Some(Strategy::List) => {}
    }
    expander.given();
    problems.extend(expander.take_problems());
    problems.extend(unused(fixed, expander, variation));
    let unused: BTreeSet<String> = problems
        .iter()
        .filter(|problem| problem.fault == Fault::NoEffect)
        .map(|problem| problem.key.clone())
        .collect();
    if variation.incomplete {
        return;
    }
    problems.extend(alike(expander, variation, &unused));
    let n_left = expander.considered.len() - expander.alike.len();
    if n_left > max_trials {
        problems.push(too_many(format!("{n_left} trials{}", sizes(variation))));
    }
    let n_excluded: usize = expander.n_excluded.iter().sum();
    if expander.considered.is_empty() && n_excluded > 0 {
        let most = (0..variation.excludes.len()).max_by_key(|idx| expander.n_excluded[*idx]).unwrap_or(0);
        problems.push(Problem {
            place: variation.excludes[most].place.clone(),
            key: variation.excludes[most].path.clone(),
            fault: Fault::NothingLeft,
            found: format!(
                "{:?} is true for {} of {n_excluded} combinations, and all are excluded",
                variation.excludes[most].formula.text, expander.n_excluded[most]
            ),
            expected: "at least one trial".to_owned(),
            hint: None,
        });
    }
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

/// Settings that the user gave and that no trial uses.
fn unused(fixed: &Fixed, expander: &Expander<'_>, variation: &Variation<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let decider_is_known = |name: &str| {
        !fixed.broken.contains(name) && !variation.broken.contains(name) && !expander.considered.is_empty()
    };
    for key in trial_keys() {
        let (decider, users) = match key.used {
            Used::Always => continue,
            Used::Architectures(names) => ("sae.architecture", names),
            Used::Schedulers(names) => ("train.lr_scheduler_name", names),
        };
        if !decider_is_known(decider) {
            continue;
        }
        let is_used = expander.considered.iter().any(|trial| super::check::View::new(&trial.settings).uses(key.name));
        let given = expander
            .considered
            .iter()
            .find_map(|trial| match trial.origin {
                Origin::Given(_) => trial.assigned.get(key.name).map(|_| trial.origin),
                Origin::Dimensions => None,
            })
            .unwrap_or(Origin::Dimensions);
        let Some(place) = expander.place_of(key.name, given).filter(|_| !is_used) else { continue };
        let words: BTreeSet<String> = expander
            .considered
            .iter()
            .filter_map(|trial| trial.settings.get(decider).map(Setting::to_toml))
            .collect();
        let words: Vec<String> = words.into_iter().collect();
        problems.push(Problem {
            place,
            key: key.name.to_owned(),
            fault: Fault::NoEffect,
            found: format!("no trial uses it: {decider} is {} in all of them", words.join(" or ")),
            expected: format!("a trial with {decider} = {}", listed(users).replace(", ", " or ")),
            hint: None,
        });
    }
    problems
}

/// Combinations of one configuration, told once for each cause.
fn alike(expander: &Expander<'_>, variation: &Variation<'_>, unused: &BTreeSet<String>) -> Vec<Problem> {
    let mut causes: BTreeMap<(Vec<&str>, Option<usize>), (usize, usize, usize)> = BTreeMap::new();
    for (first, later) in &expander.alike {
        let (a, b) = (&expander.considered[*first], &expander.considered[*later]);
        let names: BTreeSet<&str> = a.assigned.keys().chain(b.assigned.keys()).copied().collect();
        let differing: Vec<&str> =
            names.into_iter().filter(|name| a.settings.get(name) != b.settings.get(name)).collect();
        if !differing.is_empty() && differing.iter().all(|name| unused.contains(*name)) {
            continue;
        }
        let given = match (differing.is_empty(), b.origin) {
            (true, Origin::Given(idx)) => Some(idx),
            _ => None,
        };
        causes.entry((differing, given)).and_modify(|cause| cause.2 += 1).or_insert((*first, *later, 1));
    }
    let tell = |((differing, given), (first, later, count)): ((Vec<&str>, Option<usize>), (usize, usize, usize))| {
        let (a, b) = (&expander.considered[first], &expander.considered[later]);
        let key = differing.first().copied().unwrap_or_default();
        let place = match given {
            Some(idx) => variation.given[idx].place.clone(),
            None => expander.place_of(key, b.origin).unwrap_or(Place::Default),
        };
        let view = super::check::View::new(&b.settings);
        let mut hint = None;
        let reason = if differing.is_empty() {
            "the same settings".to_owned()
        } else if let Some(foreign) = differing.iter().find(|name| !view.uses(name)) {
            let decider = match find(foreign).map(|key| key.used) {
                Some(Used::Schedulers(_)) => "train.lr_scheduler_name",
                _ => "sae.architecture",
            };
            let word = b.settings.get(decider).map(Setting::to_toml).unwrap_or_default();
            let kept = a.settings.get(foreign).map(Setting::to_toml).unwrap_or_default();
            hint = Some(format!(
                "leave them out: [[exclude]] when = '{decider} == {word} and {foreign} != {kept}'; or give the pairs by [[zip]]"
            ));
            format!("{decider} = {word} does not use {foreign}")
        } else {
            "both values come to the same".to_owned()
        };
        let repeated = if count == 1 { String::new() } else { format!(", and {} more like it", count - 1) };
        Problem {
            place,
            key: match given {
                Some(idx) => variation.given[idx].path.clone(),
                None => key.to_owned(),
            },
            fault: Fault::Alike,
            found: format!("{} and {}: {reason}{repeated}", assignment(a), assignment(b)),
            expected: "every trial once".to_owned(),
            hint,
        }
    };
    causes.into_iter().map(tell).collect()
}

/// `sae.k = 32, train.lr = 0.001`.
fn assignment(trial: &super::expand::Considered) -> String {
    let values: Vec<String> =
        trial.assigned.iter().map(|(key, setting)| format!("{key} = {}", setting.to_toml())).collect();
    if values.is_empty() { "the fixed settings alone".to_owned() } else { format!("({})", values.join(", ")) }
}

fn planned(expander: &Expander<'_>) -> Vec<PlannedTrial> {
    let built = expander.considered.iter().filter_map(|trial| trial.built.as_ref());
    built
        .enumerate()
        .map(|(index, (id, config))| PlannedTrial {
            id: id.clone(),
            index,
            config: config.clone(),
            varied: BTreeMap::new(),
        })
        .collect()
}

fn varied_keys(trials: &[PlannedTrial], variation: &Variation<'_>) -> Vec<String> {
    let flats: Vec<_> = trials.iter().map(|trial| flat(&trial.config)).collect();
    let of_dimensions = variation.dimensions.iter().flat_map(|dimension| dimension.keys.iter().copied());
    let of_given = variation.given.iter().flat_map(|given| given.settings.keys().copied());
    let mut keys: Vec<String> = Vec::new();
    for key in of_dimensions.chain(of_given) {
        let differs = flats.iter().any(|flat| flat.get(key) != flats[0].get(key));
        if differs && !keys.iter().any(|known| known == key) {
            keys.push(key.to_owned());
        }
    }
    keys
}

fn with_varied(mut trials: Vec<PlannedTrial>, varied_keys: &[String]) -> Vec<PlannedTrial> {
    for trial in &mut trials {
        let mut flat = flat(&trial.config);
        trial.varied = varied_keys.iter().filter_map(|key| Some((key.clone(), flat.remove(key)?))).collect();
    }
    trials
}

fn exclude_notes(expander: &Expander<'_>, variation: &Variation<'_>) -> Vec<String> {
    let counted = variation.excludes.iter().zip(&expander.n_excluded);
    counted
        .map(|(exclude, n)| {
            let why = exclude.reason.as_ref().map_or_else(String::new, |reason| format!(" ({reason})"));
            let what = if *n == 1 { "combination" } else { "combinations" };
            format!("excluded {n} {what} by {:?}{why}", exclude.formula.text)
        })
        .collect()
}

/// Tells when trials do not share one store.
fn store_note(trials: &[PlannedTrial]) -> Option<String> {
    let of_store = |trial: &PlannedTrial| -> BTreeMap<String, serde_json::Value> {
        let mut flat = flat(&trial.config);
        flat.retain(|key, _| ["model.", "data.", "store."].iter().any(|section| key.starts_with(section)));
        flat
    };
    let stores: Vec<_> = trials.iter().map(of_store).collect();
    let mut different: Vec<&BTreeMap<String, serde_json::Value>> = Vec::new();
    for store in &stores {
        if !different.contains(&store) {
            different.push(store);
        }
    }
    if different.len() < 2 {
        return None;
    }
    let varying: Vec<&str> = different[0]
        .keys()
        .filter(|key| different.iter().any(|store| store.get(*key) != different[0].get(*key)))
        .map(String::as_str)
        .collect();
    let advice = if varying == ["store.tokens"] { "; with store.tokens set, they can share one" } else { "" };
    Some(format!("the trials need {} activation stores: they differ in {}{advice}", different.len(), varying.join(", ")))
}
