//! From what varies to trials: the strategies, and what happens to each combination.
//!
//! For every combination, in this order: the fixed settings, the combination's values, `[derive]` (each
//! expression after those it reads), `[[exclude]]`, the checks of settings against each other, the
//! configuration and its id.
//!
//! - `grid`: every combination of all dimensions, the first in the file varying slowest; then each `[[trial]]`.
//! - `list`: each `[[trial]]`.
//! - `random`: draw i takes one value of each dimension, a function of (`sweep.seed`, i, the dimension's keys)
//!   alone, so the same list comes out on every machine, and a longer list begins with the shorter one.
//!   Draws that are excluded or repeat an earlier one are made up for by further draws. Then each `[[trial]]`.
//! - `{ repeats = n }` repeats whatever the strategy gives, with n seeds.

use super::{
    check::{Contradiction, View, contradictions},
    config::trial_config,
    error::{Fault, Place, Problem},
    expressions::{Formula, context},
    identity::trial_id,
    keys::{Presence, Used, trial_keys},
    layers::Layers,
    sections::{Fixed, missing},
    setting::{Setting, coerce, show},
    variation::{Dimension, Rows, Variation},
};
use crate::trial::{TrialConfig, TrialId};
use std::collections::{BTreeMap, BTreeSet};

/// Values of one combination.
pub(crate) type Values = BTreeMap<&'static str, Setting>;

/// Where a combination came from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Origin {
    /// The dimensions.
    Dimensions,
    /// The `[[trial]]` of this index.
    Given(usize),
}

/// A combination that became a trial, or would have, were its settings right.
#[derive(Debug)]
pub(crate) struct Considered {
    pub(crate) settings: Values,
    pub(crate) assigned: Values,
    pub(crate) origin: Origin,
    /// Absent while something is wrong.
    pub(crate) built: Option<(TrialId, TrialConfig)>,
}

/// Problems of one kind in several combinations: the first of them, and how many there are.
#[derive(Debug)]
struct Tally {
    problem: Problem,
    count: usize,
}

/// A sweep as it was read, before there are trials.
#[derive(Clone, Copy)]
pub(crate) struct Parts<'a> {
    pub(crate) layers: &'a Layers,
    pub(crate) fixed: &'a Fixed,
    pub(crate) variation: &'a Variation<'a>,
}

impl Parts<'_> {
    /// Whether trials may differ in where their activations come from.
    fn source_varies(&self) -> bool {
        let source = "activations.source";
        self.variation.places.contains_key(source)
            || self.variation.given.iter().any(|given| given.settings.contains_key(source))
    }
}

/// Reports required settings of trials that nothing gives at all.
pub(crate) fn require_trial_settings(parts: Parts<'_>, problems: &mut Vec<Problem>) {
    let Parts { layers, fixed, variation } = parts;
    let settings = fixed.trial_settings();
    for key in trial_keys().filter(|key| key.presence == Presence::Required) {
        // Without one source for all, what a trial needs is seen trial by trial.
        if matches!(key.used, Used::Sources(_))
            && (parts.source_varies() || !View::new(&settings).uses(key.name))
        {
            continue;
        }
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

/// What the combinations came to.
pub(crate) struct Expander<'a> {
    parts: Parts<'a>,
    base: Values,
    broken: BTreeSet<&'static str>,
    first_of: BTreeMap<TrialId, usize>,
    tallies: BTreeMap<(Fault, String, &'static [&'static str]), Tally>,
    /// Combinations looked at.
    pub(crate) n_combinations: usize,
    /// In order.
    pub(crate) considered: Vec<Considered>,
    /// For each exclude, how many combinations it left out.
    pub(crate) n_excluded: Vec<usize>,
    /// Pairs of one configuration: the first and the later one, indices into `considered`.
    pub(crate) alike: Vec<(usize, usize)>,
}

/// Number of combinations of some dimensions; `None` when it is beyond counting.
pub(crate) fn n_combinations<'d>(dimensions: impl Iterator<Item = &'d Dimension>) -> Option<usize> {
    dimensions.map(Dimension::n_rows).try_fold(1_usize, usize::checked_mul)
}

impl Dimension {
    /// Its values, or 1 for a range.
    fn n_rows(&self) -> usize {
        match &self.rows {
            Rows::Finite(rows) => rows.len(),
            Rows::Range(_) => 1,
        }
    }

    fn assign(&self, row: usize, values: &mut Values) {
        if let Rows::Finite(rows) = &self.rows {
            values.extend(self.keys.iter().copied().zip(rows[row].iter().cloned()));
        }
    }

    /// Takes the value at a position in [0, 1).
    fn draw(&self, position: f64, values: &mut Values) {
        match &self.rows {
            Rows::Finite(rows) => {
                let row = (position * rows.len() as f64) as usize;
                self.assign(row.min(rows.len() - 1), values);
            }
            Rows::Range(range) => {
                values.insert(self.keys[0], range.at(position));
            }
        }
    }
}

/// A position in [0, 1) that depends on its arguments alone.
fn position(seed: i64, draw: u64, keys: &[&str]) -> f64 {
    let text = format!("saesweep draw 1\n{seed}\n{draw}\n{}", keys.join(","));
    let hash = blake3::hash(text.as_bytes());
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash.as_bytes()[..8]);
    // The upper 53 bits, as many as a float holds.
    (u64::from_le_bytes(bytes) >> 11) as f64 / (1_u64 << 53) as f64
}

/// All combinations of the dimensions, the first varying slowest.
fn product<'d>(dimensions: &'d [&'d Dimension]) -> impl Iterator<Item = Values> + 'd {
    let total = n_combinations(dimensions.iter().copied()).unwrap_or(usize::MAX);
    (0..total).map(move |number| {
        let mut values = Values::new();
        let mut rest = number;
        for dimension in dimensions.iter().rev() {
            dimension.assign(rest % dimension.n_rows(), &mut values);
            rest /= dimension.n_rows();
        }
        values
    })
}

impl<'a> Expander<'a> {
    pub(crate) fn new(parts: Parts<'a>) -> Self {
        let Parts { fixed, variation, .. } = parts;
        let broken: BTreeSet<&str> = fixed.broken.union(&variation.broken).copied().collect();
        let mut base = fixed.trial_settings();
        base.retain(|name, _| !broken.contains(name));
        Self {
            parts,
            base,
            broken,
            first_of: BTreeMap::new(),
            tallies: BTreeMap::new(),
            n_combinations: 0,
            considered: Vec::new(),
            n_excluded: vec![0; variation.excludes.len()],
            alike: Vec::new(),
        }
    }

    pub(crate) fn parts(&self) -> Parts<'a> {
        self.parts
    }

    fn split(&self) -> (Vec<&'a Dimension>, Vec<&'a Dimension>) {
        self.parts.variation.dimensions.iter().partition(|dimension| !dimension.repeats)
    }

    /// Every combination.
    pub(crate) fn grid(&mut self) {
        let all: Vec<&Dimension> = self.parts.variation.dimensions.iter().collect();
        for values in product(&all) {
            self.consider(values, Origin::Dimensions);
        }
    }

    /// Each `[[trial]]`.
    pub(crate) fn given(&mut self) {
        let (_, repeats) = self.split();
        for (idx, given) in self.parts.variation.given.iter().enumerate() {
            let open: Vec<&Dimension> = repeats
                .iter()
                .copied()
                .filter(|dimension| !dimension.keys.iter().any(|key| given.settings.contains_key(key)))
                .collect();
            for mut values in product(&open) {
                values.extend(given.settings.iter().map(|(key, setting)| (*key, setting.clone())));
                self.consider(values, Origin::Given(idx));
            }
        }
    }

    /// `n` draws that differ, or as many as there are; says how many it got.
    pub(crate) fn random(&mut self, n: usize, seed: i64) -> usize {
        let (searched, repeats) = self.split();
        let most_draws = 20 * n as u64 + 1000;
        let mut n_kept = 0;
        for draw in 0..most_draws {
            if n_kept == n {
                break;
            }
            let mut values = Values::new();
            for dimension in &searched {
                dimension.draw(position(seed, draw, &dimension.keys), &mut values);
            }
            let n_before = self.considered.len();
            for mut repeat in product(&repeats) {
                repeat.extend(values.clone());
                self.consider(repeat, Origin::Dimensions);
            }
            // A draw that repeats an earlier one is dropped, as nobody asked for that very combination.
            while self.alike.last().is_some_and(|(_, later)| *later >= n_before) {
                if let Some((_, later)) = self.alike.pop() {
                    self.considered.remove(later);
                }
            }
            n_kept += usize::from(self.considered.len() > n_before);
        }
        n_kept
    }

    fn consider(&mut self, assigned: Values, origin: Origin) {
        self.n_combinations += 1;
        let mut settings = self.base.clone();
        settings.extend(assigned.iter().map(|(key, setting)| (*key, setting.clone())));
        settings.retain(|name, _| !self.broken.contains(name));
        if !self.derive(&mut settings) {
            self.considered.push(Considered { settings, assigned, origin, built: None });
            return;
        }
        if let Some(excluded) = self.excluded_by(&settings) {
            self.n_excluded[excluded] += 1;
            return;
        }
        let n_missing = self.require(&settings, origin);
        let contradictions = contradictions(View::new(&settings));
        let sound = n_missing == 0 && contradictions.is_empty() && self.broken.is_empty();
        for contradiction in contradictions {
            self.contradiction(contradiction, origin);
        }
        let built = sound.then(|| {
            let config = trial_config(View::new(&settings));
            (trial_id(&config), config)
        });
        let idx = self.considered.len();
        if let Some((id, _)) = &built {
            match self.first_of.get(id) {
                Some(first) => self.alike.push((*first, idx)),
                None => {
                    self.first_of.insert(id.clone(), idx);
                }
            }
        }
        self.considered.push(Considered { settings, assigned, origin, built });
    }

    /// Evaluates `[derive]`; false when a value could not be had.
    fn derive(&mut self, settings: &mut Values) -> bool {
        let variation = self.parts.variation;
        for derived in &variation.derived {
            let path = format!("derive.{}", derived.key.name);
            if !self.readable(&derived.formula, settings) {
                return false;
            }
            let value = match derived.formula.value(&context(settings)) {
                Ok(value) => value,
                Err(message) => {
                    self.failed(&derived.formula, &path, &derived.place, &message, settings);
                    return false;
                }
            };
            match coerce(derived.key, &value) {
                Ok(setting) => {
                    settings.insert(derived.key.name, setting);
                }
                Err(mismatch) => {
                    let not_whole =
                        value.to_num().is_some_and(|num| num.to_f64().is_some_and(|x| x.fract() != 0.0));
                    let hint = if not_whole && mismatch.fault == Fault::WrongType {
                        Some("make it whole with `//` or floor(…)".to_owned())
                    } else {
                        None
                    };
                    let found = format!(
                        "{} from {:?}{}",
                        show(&value),
                        derived.formula.text,
                        values_read(&derived.formula, settings)
                    );
                    let problem = Problem {
                        place: derived.place.clone(),
                        key: path,
                        fault: mismatch.fault,
                        found,
                        expected: mismatch.expected,
                        hint,
                    };
                    self.tally(problem, &[]);
                    return false;
                }
            }
        }
        true
    }

    fn excluded_by(&mut self, settings: &Values) -> Option<usize> {
        let variation = self.parts.variation;
        if variation.excludes.is_empty() {
            return None;
        }
        let context = context(settings);
        for (idx, exclude) in variation.excludes.iter().enumerate() {
            if !self.readable(&exclude.formula, settings) {
                continue;
            }
            match exclude.formula.value(&context) {
                Ok(value) => match value.to_bool() {
                    Some(true) => return Some(idx),
                    Some(false) => {}
                    None => {
                        let problem = Problem {
                            place: exclude.place.clone(),
                            key: exclude.path.clone(),
                            fault: Fault::WrongType,
                            found: format!("{} from {:?}", show(&value), exclude.formula.text),
                            expected: "true or false, as a comparison gives".to_owned(),
                            hint: None,
                        };
                        self.tally(problem, &[]);
                    }
                },
                Err(message) => {
                    self.failed(&exclude.formula, &exclude.path, &exclude.place, &message, settings)
                }
            }
        }
        None
    }

    /// Whether all that the expression reads has a value; what is missing is reported elsewhere.
    fn readable(&self, formula: &Formula<'_>, settings: &Values) -> bool {
        formula.depends_on().all(|name| settings.contains_key(name))
    }

    fn failed(&mut self, formula: &Formula<'_>, path: &str, place: &Place, message: &str, settings: &Values) {
        let problem = Problem {
            place: place.clone(),
            key: path.to_owned(),
            fault: Fault::FailedExpression,
            found: format!("{:?}: {message}{}", formula.text, values_read(formula, settings)),
            expected: "an expression that has a value for every trial".to_owned(),
            hint: None,
        };
        self.tally(problem, &[]);
    }

    /// Reports required settings without a value.
    fn require(&mut self, settings: &Values, origin: Origin) -> usize {
        let mut n_missing = 0;
        for key in trial_keys().filter(|key| key.presence == Presence::Required) {
            if settings.contains_key(key.name)
                || self.broken.contains(key.name)
                || !View::new(settings).uses(key.name)
            {
                continue;
            }
            n_missing += 1;
            // What nothing gives at all was reported before there were combinations.
            let depends_on_source = matches!(key.used, Used::Sources(_)) && self.parts.source_varies();
            if !depends_on_source
                && !self.parts.variation.given.iter().any(|given| given.settings.contains_key(key.name))
            {
                continue;
            }
            let mut problem = missing(key, self.parts.layers);
            problem.hint =
                Some(format!("add {} = … to every [[trial]], or to [{}]", key.name, key.section()));
            if let Origin::Given(idx) = origin {
                problem.place = self.parts.variation.given[idx].place.clone();
                problem.key = format!("{}.{}", self.parts.variation.given[idx].path, key.name);
            }
            self.tally(problem, &[]);
        }
        n_missing
    }

    fn contradiction(&mut self, contradiction: Contradiction, origin: Origin) {
        let Contradiction { keys, found, expected, hint } = contradiction;
        let written = keys.iter().find_map(|key| Some((*key, self.place_of(key, origin)?)));
        let (key, place) = written.unwrap_or_else(|| (keys[0], Place::Default));
        let problem =
            Problem { place, key: key.to_owned(), fault: Fault::Contradiction, found, expected, hint };
        self.tally(problem, keys);
    }

    /// Where the user wrote the value that a setting has in a combination.
    pub(crate) fn place_of(&self, key: &str, origin: Origin) -> Option<Place> {
        if let Origin::Given(idx) = origin
            && self.parts.variation.given[idx].settings.contains_key(key)
        {
            return Some(
                self.parts.layers.file_place(&format!("{}.{key}", self.parts.variation.given[idx].path)),
            );
        }
        let varying = self.parts.variation.places.get(key);
        let place = varying.or_else(|| self.parts.fixed.place(key))?;
        (*place != Place::Default).then(|| place.clone())
    }

    fn tally(&mut self, problem: Problem, keys: &'static [&'static str]) {
        self.tallies
            .entry((problem.fault, problem.key.clone(), keys))
            .and_modify(|tally| tally.count += 1)
            .or_insert(Tally { problem, count: 1 });
    }

    /// The problems met so far, each told once.
    pub(crate) fn take_problems(&mut self) -> Vec<Problem> {
        let total = self.n_combinations;
        std::mem::take(&mut self.tallies)
            .into_values()
            .map(|Tally { mut problem, count }| {
                if count < total && problem.fault != Fault::Missing {
                    let first = if count == 1 { "" } else { ", this is the first" };
                    problem.found = format!("{} (in {count} of {total} combinations{first})", problem.found);
                }
                problem
            })
            .collect()
    }
}

/// The values that an expression has read, for a message.
fn values_read(formula: &Formula<'_>, settings: &Values) -> String {
    let values: Vec<String> = formula
        .reads
        .iter()
        .filter_map(|name| {
            let view = View::new(settings);
            let text = match *name {
                "train.steps" => view.steps()?.to_string(),
                "train.schedule_steps" => view.schedule_steps()?.to_string(),
                other => view.resolved(other)?.to_toml(),
            };
            Some(format!("{name} = {text}"))
        })
        .collect();
    if values.is_empty() { String::new() } else { format!(", with {}", values.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_spread_and_repeat() {
        let positions: Vec<f64> = (0..1000).map(|draw| position(42, draw, &["train.lr"])).collect();
        assert!(positions.iter().all(|x| (0.0..1.0).contains(x)));
        let mean = positions.iter().sum::<f64>() / 1000.0;
        assert!((mean - 0.5).abs() < 0.05, "{mean}");
        assert_eq!(positions[7], position(42, 7, &["train.lr"]));
        assert_ne!(positions[7], position(43, 7, &["train.lr"]));
        assert_ne!(positions[7], position(42, 7, &["train.seed"]));
    }
}
