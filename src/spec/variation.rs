//! What varies between trials: `[axes]`, `[[zip]]`, `[[trial]]`, `[derive]` and `[[exclude]]`, read and
//! checked one by one. How they combine is `expand`'s.

use super::{
    axes::{Axis, Points, Range, definition, read_axis},
    error::{Fault, Place, Problem},
    expressions::Formula,
    keys::{Key, Scope, find},
    layers::Layers,
    sections::Fixed,
    setting::{Setting, coerce, show},
    suggest,
};
use figment::value::{Dict, Value};
use minijinja::Environment;
use std::collections::{BTreeMap, BTreeSet};

/// Settings that take their values together: one axis, or the columns of one `[[zip]]`.
#[derive(Debug)]
pub(crate) struct Dimension {
    pub(crate) keys: Vec<&'static str>,
    pub(crate) rows: Rows,
    /// Whether it repeats trials rather than being searched over.
    pub(crate) repeats: bool,
    /// Where it stands in the file.
    position: usize,
}

/// The values of a dimension.
#[derive(Debug)]
pub(crate) enum Rows {
    /// One value for each key, row by row.
    Finite(Vec<Vec<Setting>>),
    /// One key, drawn from a range.
    Range(Range),
}

/// One `[[trial]]`.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) settings: BTreeMap<&'static str, Setting>,
    pub(crate) place: Place,
    /// `trial[0]`.
    pub(crate) path: String,
}

/// One line of `[derive]`.
#[derive(Debug)]
pub(crate) struct Derived<'env> {
    pub(crate) key: &'static Key,
    pub(crate) formula: Formula<'env>,
    pub(crate) place: Place,
}

/// One `[[exclude]]`.
#[derive(Debug)]
pub(crate) struct Exclude<'env> {
    pub(crate) formula: Formula<'env>,
    pub(crate) reason: Option<String>,
    pub(crate) place: Place,
    /// `exclude[0].when`.
    pub(crate) path: String,
}

/// Everything that varies.
#[derive(Debug, Default)]
pub(crate) struct Variation<'env> {
    /// In the order of the file.
    pub(crate) dimensions: Vec<Dimension>,
    pub(crate) given: Vec<Given>,
    /// In an order in which each comes after those it depends on.
    pub(crate) derived: Vec<Derived<'env>>,
    pub(crate) excludes: Vec<Exclude<'env>>,
    /// Axes as they were written.
    pub(crate) axes: Vec<Axis>,
    /// Where each varying setting gets its values.
    pub(crate) places: BTreeMap<&'static str, Place>,
    /// Settings whose variation was given wrongly.
    pub(crate) broken: BTreeSet<&'static str>,
    /// Whether anything at all was given wrongly, so that counts would mislead.
    pub(crate) incomplete: bool,
    /// What the user should know.
    pub(crate) notes: Vec<String>,
}

/// Reads all of it.
pub(crate) fn read_variation<'env>(
    layers: &Layers,
    fixed: &Fixed,
    environment: &'env Environment<'static>,
    problems: &mut Vec<Problem>,
) -> Variation<'env> {
    let n_before = problems.len();
    let mut reader = Reader {
        layers,
        fixed,
        environment,
        problems,
        claims: BTreeMap::new(),
        variation: Variation::default(),
    };
    reader.axes();
    reader.zips();
    reader.given();
    reader.derived();
    reader.excludes();
    let mut variation = reader.variation;
    variation.incomplete = problems.len() > n_before;
    variation.dimensions.sort_by_key(|dimension| (dimension.position, dimension.keys.clone()));
    variation
}

pub(crate) struct Reader<'a, 'env> {
    pub(crate) layers: &'a Layers,
    pub(crate) fixed: &'a Fixed,
    pub(crate) environment: &'env Environment<'static>,
    pub(crate) problems: &'a mut Vec<Problem>,
    /// What sets each varying key, in words.
    pub(crate) claims: BTreeMap<&'static str, String>,
    pub(crate) variation: Variation<'env>,
}

impl<'env> Reader<'_, 'env> {
    pub(crate) fn problem(
        &mut self,
        place: Place,
        key: &str,
        fault: Fault,
        found: String,
        expected: &str,
        hint: Option<String>,
    ) {
        let expected = expected.to_owned();
        self.problems.push(Problem { place, key: key.to_owned(), fault, found, expected, hint });
    }

    /// The setting that a flat name under `axes` and the like means, if a trial has it.
    pub(crate) fn key(&mut self, name: &str, path: &str, value: &Value) -> Option<&'static Key> {
        let place = self.layers.place(path, value);
        match find(name) {
            Some(key) if key.scope == Scope::Trial => Some(key),
            Some(key) => {
                let found = format!("{name} = {}", show(value));
                let expected = "a setting of [model], [data], [store], [sae], [train] or [eval]";
                let hint = format!("[{}] is one for the whole sweep", key.section());
                self.problem(place, path, Fault::NotPerTrial, found, expected, Some(hint));
                None
            }
            None => {
                let found = format!("{name} = {}", show(value));
                let hint = suggest::setting(name);
                self.problem(
                    place,
                    path,
                    Fault::UnknownKey,
                    found,
                    "the full name of a setting, such as sae.d_sae",
                    hint,
                );
                None
            }
        }
    }

    /// Whether a higher layer fixes this setting, so that what would vary it is dropped.
    pub(crate) fn is_fixed_above(&mut self, key: &'static Key, what: &str, place: &Place) -> bool {
        let Some((setting, fixed_place)) = self.fixed.values.get(key.name) else { return false };
        if fixed_place.height() <= place.height().max(1) {
            return false;
        }
        let note = format!(
            "{} is fixed at {} by {}; {what} is not used",
            key.name,
            setting.to_toml(),
            fixed_place.phrase()
        );
        if !self.variation.notes.contains(&note) {
            self.variation.notes.push(note);
        }
        true
    }

    /// Notes that `what` sets the key, and refuses a second claim.
    pub(crate) fn claim(&mut self, key: &'static Key, what: &str, path: &str, place: &Place) -> bool {
        if let Some(first) = self.claims.get(key.name) {
            let found = format!("{what}, besides {first}");
            let hint = match (what.starts_with("[derive]"), first.starts_with("[derive]")) {
                (false, false) => None,
                _ => Some("[derive] replaces the value in every trial".to_owned()),
            };
            self.problem(place.clone(), path, Fault::Contradiction, found, "one of the two", hint);
            self.variation.broken.insert(key.name);
            return false;
        }
        self.claims.insert(key.name, format!("{what} ({})", place.phrase()));
        self.variation.places.insert(key.name, place.clone());
        true
    }

    fn part(&mut self, name: &str) -> Option<Value> {
        self.layers.dict.get(name).cloned()
    }

    pub(crate) fn flat_part(&mut self, name: &str) -> Vec<(String, Value)> {
        match self.part(name) {
            None => Vec::new(),
            Some(Value::Dict(_, dict)) => dict.into_iter().collect(),
            Some(other) => {
                let place = self.layers.place(name, &other);
                let hint = matches!(other, Value::Array(..)).then(|| "use single brackets".to_owned());
                self.problem(
                    place,
                    name,
                    Fault::WrongType,
                    show(&other),
                    &format!("a table, [{name}]"),
                    hint,
                );
                Vec::new()
            }
        }
    }

    pub(crate) fn list_part(&mut self, name: &str) -> Vec<(String, Value, Dict)> {
        let expected = format!("tables, [[{name}]]");
        let items = match self.part(name) {
            None => return Vec::new(),
            Some(Value::Array(_, items)) => items,
            Some(other) => {
                let place = self.layers.place(name, &other);
                let hint =
                    matches!(other, Value::Dict(..)).then(|| format!("use double brackets: [[{name}]]"));
                self.problem(
                    self.layers.file_place(name).min(place),
                    name,
                    Fault::WrongType,
                    show(&other),
                    &expected,
                    hint,
                );
                return Vec::new();
            }
        };
        let mut tables = Vec::new();
        for (idx, item) in items.into_iter().enumerate() {
            let path = format!("{name}[{idx}]");
            match &item {
                Value::Dict(_, dict) => tables.push((path, item.clone(), dict.clone())),
                other => {
                    let place = self.layers.place(&path, other);
                    self.problem(place, &path, Fault::WrongType, show(other), &expected, None);
                }
            }
        }
        tables
    }

    fn axes(&mut self) {
        for (name, wrapped) in self.flat_part("axes") {
            // An axis travels inside an array of one; see `source`.
            let Some([value]) = wrapped.as_array() else { continue };
            let path = format!("axes.{name}");
            let Some(key) = self.key(&name, &path, value) else { continue };
            let place = self.layers.place(&path, value);
            if self.is_fixed_above(key, "its axis", &place) || !self.claim(key, "an axis", &path, &place) {
                continue;
            }
            let Some(points) = read_axis(key, &path, value, self.layers, self.problems) else {
                self.variation.broken.insert(key.name);
                continue;
            };
            let Some((rows, repeats)) = self.rows(key, points) else { continue };
            let values = match &rows {
                Rows::Finite(rows) => rows.iter().flatten().map(Setting::to_json).collect(),
                Rows::Range(_) => Vec::new(),
            };
            self.variation.axes.push(Axis { key: name.clone(), definition: definition(value), values });
            let position = self.layers.position(&path);
            self.variation.dimensions.push(Dimension { keys: vec![key.name], rows, repeats, position });
        }
        self.variation.axes.sort_by_key(|axis| self.layers.position(&format!("axes.{}", axis.key)));
    }

    fn rows(&self, key: &'static Key, points: Points) -> Option<(Rows, bool)> {
        match points {
            Points::Finite(values) => {
                Some((Rows::Finite(values.into_iter().map(|value| vec![value]).collect()), false))
            }
            Points::Range(range) => Some((Rows::Range(range), false)),
            Points::Repeats(n) => {
                let first = self.fixed.get(key.name)?.as_int()?;
                Some((
                    Rows::Finite((0..n).map(|idx| vec![Setting::Int(first.saturating_add(idx))]).collect()),
                    true,
                ))
            }
        }
    }

    fn zips(&mut self) {
        for (path, table, columns) in self.list_part("zip") {
            let n_before = self.problems.len();
            let mut keys = Vec::new();
            let mut values: Vec<Vec<Setting>> = Vec::new();
            let mut longest: Option<(String, usize)> = None;
            for (name, value) in &columns {
                let path = format!("{path}.{name}");
                let Some(key) = self.key(name, &path, value) else { continue };
                let place = self.layers.place(&path, value);
                if self.is_fixed_above(key, "its column of a [[zip]]", &place)
                    || !self.claim(key, "a column of a [[zip]]", &path, &place)
                {
                    continue;
                }
                let column = match self.column(key, &path, value) {
                    Some(column) => column,
                    None => {
                        self.variation.broken.insert(key.name);
                        continue;
                    }
                };
                match &longest {
                    Some((first, n)) if *n != column.len() => {
                        let found = format!("{} values, and {n} for {first}", column.len());
                        self.problem(place, &path, Fault::UnevenZip, found, "columns of one length", None);
                    }
                    Some(_) => {}
                    None => longest = Some((name.clone(), column.len())),
                }
                keys.push(key.name);
                values.push(column);
            }
            if columns.is_empty() {
                let place = self.layers.place(&path, &table);
                let expected = "at least two columns of values";
                self.problem(place, &path, Fault::BadAxis, "an empty [[zip]]".to_owned(), expected, None);
            }
            if self.problems.len() > n_before || keys.is_empty() {
                self.variation.broken.extend(keys);
                continue;
            }
            let n_rows = values[0].len();
            let rows =
                (0..n_rows).map(|row| values.iter().map(|column| column[row].clone()).collect()).collect();
            let position = self.layers.position(&path);
            self.variation.dimensions.push(Dimension {
                keys,
                rows: Rows::Finite(rows),
                repeats: false,
                position,
            });
        }
    }

    /// The values of one column of a zip: as an axis, but a value may come twice.
    fn column(&mut self, key: &'static Key, path: &str, value: &Value) -> Option<Vec<Setting>> {
        if let Some(items) = value.as_array().filter(|items| !items.is_empty()) {
            let mut settings = Vec::new();
            for (idx, item) in items.iter().enumerate() {
                settings.push(self.coerced(key, &format!("{path}[{idx}]"), item));
            }
            return settings.into_iter().collect();
        }
        match read_axis(key, path, value, self.layers, self.problems)? {
            Points::Finite(settings) => Some(settings),
            Points::Repeats(_) | Points::Range(_) => {
                let place = self.layers.place(path, value);
                let expected = "a list of values, or linear or log with steps";
                self.problem(place, path, Fault::BadAxis, show(value), expected, None);
                None
            }
        }
    }

    fn coerced(&mut self, key: &'static Key, path: &str, value: &Value) -> Option<Setting> {
        match coerce(key, value) {
            Ok(setting) => Some(setting),
            Err(mismatch) => {
                let place = self.layers.place(path, value);
                self.problem(place, path, mismatch.fault, mismatch.found, &mismatch.expected, mismatch.hint);
                None
            }
        }
    }

    fn given(&mut self) {
        for (path, table, settings) in self.list_part("trial") {
            let place = self.layers.place(&path, &table);
            let place = if matches!(place, Place::Default) { self.layers.file_place(&path) } else { place };
            let mut given = Given { settings: BTreeMap::new(), place, path: path.clone() };
            for (name, value) in &settings {
                let path = format!("{path}.{name}");
                let Some(key) = self.key(name, &path, value) else { continue };
                let place = self.layers.place(&path, value);
                if self.is_fixed_above(key, "its value in [[trial]]", &place) {
                    continue;
                }
                match self.coerced(key, &path, value) {
                    Some(setting) => {
                        given.settings.insert(key.name, setting);
                    }
                    None => {
                        self.variation.broken.insert(key.name);
                    }
                }
            }
            self.variation.given.push(given);
        }
    }
}
