//! The sections that hold one value for the whole sweep, checked setting by setting.

use super::{
    error::{Fault, Place, Problem},
    keys::{self, KEYS, Presence, SECTIONS, Scope, VARIATION, find, is_prefix},
    layers::Layers,
    setting::{Setting, coerce, show},
    suggest,
};
use figment::value::{Dict, Value};
use std::collections::{BTreeMap, BTreeSet};

/// Values given once, and where.
#[derive(Debug, Default)]
pub(crate) struct Fixed {
    pub(crate) values: BTreeMap<&'static str, (Setting, Place)>,
    /// Settings that were given wrongly; judging anything that depends on them would mislead.
    pub(crate) broken: BTreeSet<&'static str>,
}

impl Fixed {
    pub(crate) fn get(&self, name: &str) -> Option<&Setting> {
        self.values.get(name).map(|(setting, _)| setting)
    }

    pub(crate) fn place(&self, name: &str) -> Option<&Place> {
        self.values.get(name).map(|(_, place)| place)
    }

    /// The settings of a trial before anything varies.
    pub(crate) fn trial_settings(&self) -> BTreeMap<&'static str, Setting> {
        keys::trial_keys()
            .filter_map(|key| self.get(key.name).map(|setting| (key.name, setting.clone())))
            .collect()
    }
}

/// Reads all sections.
pub(crate) fn read_sections(layers: &Layers, problems: &mut Vec<Problem>) -> Fixed {
    let mut reader = SectionReader { layers, problems, fixed: Fixed::default() };
    for (name, value) in &layers.dict {
        if VARIATION.contains(&name.as_str()) {
            continue;
        }
        if !SECTIONS.contains(&name.as_str()) {
            let expected = format!("one of the sections {}", bracketed(SECTIONS.iter().chain(VARIATION)));
            let found = match value {
                Value::Dict(..) => format!("[{name}]"),
                _ => format!("{name} = {}", show(value)),
            };
            let place = reader.layers.file_place(name);
            reader.problem(place, name, Fault::UnknownSection, found, expected, suggest::section(name));
            continue;
        }
        match value {
            Value::Dict(_, dict) => reader.table(name, dict),
            other => {
                let place = reader.layers.place(name, other);
                let expected = format!("a table, [{name}]");
                let hint = matches!(other, Value::Array(..)).then(|| "use single brackets".to_owned());
                reader.problem(place, name, Fault::WrongType, show(other), expected, hint);
                reader.break_below(name);
            }
        }
    }
    reader.fixed
}

fn bracketed<'a>(names: impl Iterator<Item = &'a &'a str>) -> String {
    names.map(|name| format!("[{name}]")).collect::<Vec<_>>().join(", ")
}

struct SectionReader<'a> {
    layers: &'a Layers,
    problems: &'a mut Vec<Problem>,
    fixed: Fixed,
}

impl SectionReader<'_> {
    fn problem(
        &mut self,
        place: Place,
        key: &str,
        fault: Fault,
        found: String,
        expected: String,
        hint: Option<String>,
    ) {
        self.problems.push(Problem { place, key: key.to_owned(), fault, found, expected, hint });
    }

    /// Marks all settings below a name as given wrongly.
    fn break_below(&mut self, name: &str) {
        let below =
            KEYS.iter().filter(|key| key.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')));
        self.fixed.broken.extend(below.map(|key| key.name));
    }

    fn table(&mut self, prefix: &str, dict: &Dict) {
        for (name, value) in dict {
            let name = format!("{prefix}.{name}");
            let place = self.layers.place(&name, value);
            if let Some(key) = find(&name) {
                match coerce(key, value) {
                    Ok(setting) => {
                        self.fixed.values.insert(key.name, (setting, place));
                    }
                    Err(mismatch) => {
                        self.fixed.broken.insert(key.name);
                        self.problem(
                            place,
                            &name,
                            mismatch.fault,
                            mismatch.found,
                            mismatch.expected,
                            mismatch.hint,
                        );
                    }
                }
            } else if is_prefix(&name) {
                match value {
                    Value::Dict(_, inner) => self.table(&name, inner),
                    other => {
                        let inner = KEYS
                            .iter()
                            .filter_map(|key| key.name.strip_prefix(name.as_str())?.strip_prefix('.'))
                            .map(|rest| format!("{rest} = …"))
                            .collect::<Vec<_>>();
                        let expected = format!("a table, {{ {} }}", inner.join(", "));
                        self.problem(place, &name, Fault::WrongType, show(other), expected, None);
                        self.break_below(&name);
                    }
                }
            } else {
                let known = KEYS
                    .iter()
                    .filter_map(|key| key.name.strip_prefix(prefix)?.strip_prefix('.'))
                    .collect::<Vec<_>>();
                let last = name.rsplit('.').next().unwrap_or_default();
                let found = format!("{last} = {}", show(value));
                let expected = format!("a setting of [{prefix}]: {}", known.join(", "));
                let place = match value {
                    // The tag of an empty table is lost when layers are merged.
                    Value::Dict(..) => self.layers.file_place(&name),
                    _ => place,
                };
                let section = prefix.split('.').next().unwrap_or(prefix);
                let hint = if last == section {
                    Some(format!("below [{section}], `{section}.` is left out"))
                } else {
                    suggest::setting(&name)
                };
                self.problem(place, &name, Fault::UnknownKey, found, expected, hint);
            }
        }
    }
}

/// Reports settings of the sweep itself that must be given and are not.
pub(crate) fn require_sweep_settings(fixed: &Fixed, layers: &Layers, problems: &mut Vec<Problem>) {
    for key in KEYS.iter().filter(|key| key.scope == Scope::Sweep && key.presence == Presence::Required) {
        if fixed.get(key.name).is_none() && !fixed.broken.contains(key.name) {
            problems.push(missing(key, layers));
        }
    }
}

/// The problem of a setting that nothing gives.
pub(crate) fn missing(key: &keys::Key, layers: &Layers) -> Problem {
    let (section, last) = key.name.split_once('.').unwrap_or((key.name, ""));
    Problem {
        place: layers.file_place(section),
        key: key.name.to_owned(),
        fault: Fault::Missing,
        found: "nothing".to_owned(),
        expected: key.describe(),
        hint: Some(format!("add {last} = … under [{section}]")),
    }
}
