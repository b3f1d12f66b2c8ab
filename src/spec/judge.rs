//! What all combinations together say: settings without effect, trials alike, nothing left, and notes.

use super::{
    check::View,
    error::{Fault, Place, Problem},
    expand::{Considered, Expander, Origin, Parts},
    identity::flat,
    keys::{MODE, Used, find, listed, trial_keys},
    plan::PlannedTrial,
    sections::Fixed,
    setting::Setting,
    strategy::{max_trials, too_many},
    variation::Variation,
};
use crate::{
    metric::{METRICS, Needs, metric},
    trial::{Architecture, SparsityLossMode},
};
use std::collections::{BTreeMap, BTreeSet};

/// Judges the combinations as a whole.
pub(crate) fn judge(expander: &mut Expander<'_>, problems: &mut Vec<Problem>) {
    let parts = expander.parts();
    let Parts { fixed, variation, .. } = parts;
    problems.extend(expander.take_problems());
    problems.extend(unused(fixed, expander, variation));
    problems.extend(objective_without_metric(parts, expander));
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
    if n_left > max_trials(fixed) {
        problems.push(too_many(&format!("{n_left} trials"), parts));
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

/// Settings that the user gave and that no trial uses.
fn unused(fixed: &Fixed, expander: &Expander<'_>, variation: &Variation<'_>) -> Vec<Problem> {
    let mut problems = Vec::new();
    let decider_is_known = |name: &str| {
        !fixed.broken.contains(name) && !variation.broken.contains(name) && !expander.considered.is_empty()
    };
    let any_uses = |name: &str| expander.considered.iter().any(|trial| View::new(&trial.settings).uses(name));
    for key in trial_keys() {
        let one_of = |names: &[&str]| format!("= {}", listed(names).replace(", ", " or "));
        let (decider, users) = match key.used {
            Used::Always => continue,
            Used::Sources(names) => ("activations.source", one_of(names)),
            Used::Architectures(names) => ("sae.architecture", one_of(names)),
            Used::Modes(names) => (MODE, one_of(names)),
            Used::Schedulers(names) => ("train.lr_scheduler_name", one_of(names)),
            Used::Starts(names) => ("sae.init_from", one_of(names)),
            Used::DrawnJumpRelus if any_uses(MODE) => ("sae.init_from", one_of(&[""])),
            Used::DrawnJumpRelus => ("sae.architecture", one_of(&["jumprelu"])),
            Used::With(other) => (other, "above 0".to_owned()),
        };
        if !decider_is_known(decider) {
            continue;
        }
        let given = expander
            .considered
            .iter()
            .find_map(|trial| match trial.origin {
                Origin::Given(_) => trial.assigned.get(key.name).map(|_| trial.origin),
                Origin::Dimensions => None,
            })
            .unwrap_or(Origin::Dimensions);
        let Some(place) = expander.place_of(key.name, given).filter(|_| !any_uses(key.name)) else {
            continue;
        };
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
            expected: format!("a trial with {decider} {users}"),
            hint: None,
        });
    }
    problems
}

/// An objective that no trial will have.
fn objective_without_metric(parts: Parts<'_>, expander: &Expander<'_>) -> Option<Problem> {
    let Parts { layers, fixed, variation } = parts;
    let source = "activations.source";
    if fixed.broken.contains(source) || variation.broken.contains(source) || expander.considered.is_empty() {
        return None;
    }
    let name = fixed.get("sweep.objective.metric")?.as_text()?;
    let sources: BTreeSet<&str> =
        expander.considered.iter().filter_map(|trial| trial.settings.get(source)?.as_text()).collect();
    let is_met = |needs: Needs| match needs {
        Needs::Activations => true,
        Needs::Model => sources.contains("model"),
        Needs::Truth => sources.contains("toy"),
    };
    if is_met(metric(name)?.needs) {
        return None;
    }
    let there: Vec<&str> =
        METRICS.iter().filter(|metric| is_met(metric.needs)).map(|metric| metric.name).collect();
    let better = if is_met(Needs::Truth) { "recovered_share" } else { "explained_variance" };
    let words: Vec<&str> = sources.into_iter().collect();
    Some(Problem {
        place: match fixed.place("sweep.objective.metric")? {
            Place::Default => layers.file_place("sweep"),
            place => place.clone(),
        },
        key: "sweep.objective.metric".to_owned(),
        fault: Fault::NoEffect,
        found: format!(
            "\"{name}\", which no trial will have: {source} is {} in all of them",
            listed(&words).replace(", ", " or ")
        ),
        expected: format!("one of {}", listed(&there)),
        hint: Some(format!("objective = {{ metric = \"{better}\" }} under [sweep]")),
    })
}

/// Why combinations are alike: the settings in which they differ all the same, and the `[[trial]]` table if one
/// repeats another.
type Cause<'a> = (Vec<&'a str>, Option<usize>);

/// The first pair of combinations with a cause, and how many pairs have it.
type Occurrence = (usize, usize, usize);

/// Combinations of one configuration, told once for each cause.
fn alike(expander: &Expander<'_>, variation: &Variation<'_>, unused: &BTreeSet<String>) -> Vec<Problem> {
    let mut causes: BTreeMap<Cause<'_>, Occurrence> = BTreeMap::new();
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
        causes.entry((differing, given)).and_modify(|seen| seen.2 += 1).or_insert((*first, *later, 1));
    }
    let tell = |((differing, given), (first, later, count)): (Cause<'_>, Occurrence)| {
        let (a, b) = (&expander.considered[first], &expander.considered[later]);
        let key = differing.first().copied().unwrap_or_default();
        let place = match given {
            Some(idx) => variation.given[idx].place.clone(),
            None => expander.place_of(key, b.origin).unwrap_or(Place::Default),
        };
        let view = View::new(&b.settings);
        let mut hint = None;
        let reason = if differing.is_empty() {
            "the same settings".to_owned()
        } else if let Some(foreign) = differing.iter().find(|name| !view.uses(name)) {
            let decider = match find(foreign).map(|key| key.used) {
                Some(Used::Sources(_)) => "activations.source",
                Some(Used::Schedulers(_)) => "train.lr_scheduler_name",
                Some(Used::Modes(_)) if view.uses(MODE) => MODE,
                Some(Used::Starts(_)) => "sae.init_from",
                Some(Used::DrawnJumpRelus) if view.uses(MODE) => "sae.init_from",
                Some(Used::With(other)) if view.uses(other) => other,
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
            found: match given {
                Some(_) => format!("{}, which is a trial already{repeated}", assignment(b)),
                None => format!("{} and {}: {reason}{repeated}", assignment(a), assignment(b)),
            },
            expected: "every trial once".to_owned(),
            hint,
        }
    };
    causes.into_iter().map(tell).collect()
}

/// `sae.k = 32, train.lr = 0.001`.
fn assignment(trial: &Considered) -> String {
    let values: Vec<String> =
        trial.assigned.iter().map(|(key, setting)| format!("{key} = {}", setting.to_toml())).collect();
    if values.is_empty() { "the fixed settings alone".to_owned() } else { format!("({})", values.join(", ")) }
}

/// What each exclude left out.
pub(crate) fn exclude_notes(expander: &Expander<'_>, variation: &Variation<'_>) -> Vec<String> {
    let counted = variation.excludes.iter().zip(&expander.n_excluded);
    counted
        .map(|(exclude, n)| {
            let why = exclude.reason.as_ref().map_or_else(String::new, |reason| format!(" ({reason})"));
            let what = if *n == 1 { "combination" } else { "combinations" };
            format!("excluded {n} {what} by {:?}{why}", exclude.formula.text)
        })
        .collect()
}

/// Tells of settings that are allowed and unlikely to do what they say.
pub(crate) fn doubt_notes(trials: &[PlannedTrial]) -> Vec<String> {
    let saturated = trials.iter().filter(|trial| match trial.config.sae.architecture {
        Architecture::JumpRelu { jumprelu_sparsity_loss_mode: mode, l0_coefficient, .. } => {
            mode != SparsityLossMode::Quadratic && l0_coefficient > 1.0
        }
        _ => false,
    });
    let n = saturated.count();
    let what = if n == 1 { "1 trial has" } else { &format!("{n} trials have") };
    (n > 0)
        .then(|| {
            format!(
                "{what} sae.l0_coefficient above 1, where it hardly changes the sparsity any more: the penalty then \
                 outweighs the error everywhere, and gradients are clipped to one norm anyway; values from 1e-4 to \
                 1e-1 cover the range, or mode quadratic with sae.target_l0"
            )
        })
        .into_iter()
        .collect()
}

/// Tells when trials do not share one store.
pub(crate) fn store_note(trials: &[PlannedTrial]) -> Option<String> {
    let of_store = |trial: &PlannedTrial| -> BTreeMap<String, serde_json::Value> {
        let mut flat = flat(&trial.config);
        flat.retain(|key, _| {
            ["activations.", "model.", "data.", "store."].iter().any(|section| key.starts_with(section))
        });
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
    Some(format!(
        "the trials need {} activation stores: they differ in {}{advice}",
        different.len(),
        varying.join(", ")
    ))
}
