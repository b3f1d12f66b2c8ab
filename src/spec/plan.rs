//! The way from a sweep file to a plan. Start with [`load`].

use super::{
    config::{SweepSection, SweepSpec, devices, int, optional_text, report_section, run_config, size, text},
    error::{Fault, Place, Problem, SpecErrors},
    expand::{Expander, Parts, require_trial_settings},
    expressions::environment,
    identity::flat,
    judge::{doubt_notes, exclude_notes, judge, store_note},
    layers::read_layers,
    resolved::resolved,
    sections::{Fixed, read_sections, require_sweep_settings},
    setting::Setting,
    source::SpecSource,
    strategy::{combine, fit_strategy, objective, strategy},
    variation::{Variation, read_variation},
};
use crate::trial::{TrialConfig, TrialId};
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

/// Reads a sweep: layers, settings, what varies, trials. Pure: the same source gives the same plan anywhere.
///
/// # Errors
///
/// Everything that is wrong, together.
pub fn load(source: &SpecSource) -> Result<Plan, SpecErrors> {
    let mut problems = Vec::new();
    let layers = read_layers(source, &mut problems);
    let unreadable =
        |problem: &Problem| problem.fault == Fault::Syntax && matches!(problem.place, Place::File { .. });
    if problems.iter().any(unreadable) {
        return Err(SpecErrors::new(&source.path, problems));
    }
    let fixed = read_sections(&layers, &mut problems);
    require_sweep_settings(&fixed, &layers, &mut problems);
    let environment = environment();
    let mut variation = read_variation(&layers, &fixed, &environment, &mut problems);
    let mut notes = std::mem::take(&mut variation.notes);
    let parts = Parts { layers: &layers, fixed: &fixed, variation: &variation };
    let (objective, strategy) = (objective(&fixed, &mut problems), strategy(&fixed));
    if let Some(strategy) = strategy {
        fit_strategy(strategy, parts, &mut problems);
    }
    require_trial_settings(parts, &mut problems);
    let mut expander = Expander::new(parts);
    match combine(strategy, &mut expander, &mut notes) {
        Ok(()) => judge(&mut expander, &mut problems),
        Err(too_many) => problems.push(*too_many),
    }
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
    notes.extend(doubt_notes(&trials));
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
        resolved: resolved(&source.path, parts, &trials),
        given_outside: given_outside(&fixed),
    };
    Ok(Plan { spec, trials, varied_keys, notes })
}

/// Texts that came from the command line or the environment.
fn given_outside(fixed: &Fixed) -> BTreeSet<String> {
    let outside = fixed.values.values().filter(|(_, place)| place.height() >= 2);
    let texts = |setting: &Setting| match setting {
        Setting::Text(text) => vec![text.clone()],
        Setting::Words(words) => words.clone(),
        _ => Vec::new(),
    };
    outside.flat_map(|(setting, _)| texts(setting)).collect()
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
