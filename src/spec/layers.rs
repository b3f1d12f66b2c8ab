//! The four layers of settings, merged by figment: defaults, file, environment, `--set`.
//!
//! Every environment variable and every `--set` is a provider of its own, so that figment's tags tell for
//! each merged value which of them it came from; [`Layers::place`] turns a tag into a [`Place`].

use super::{
    DEFAULTS_TOML,
    error::{Fault, Place, Problem},
    keys::{KEYS, Kind, SECTIONS, VARIATION, find},
    source::{Offsets, Read, SpecSource, line_of, read_assignment, read_file},
    suggest,
};
use figment::{
    Figment, Metadata, Profile, Provider, Source,
    value::{Dict, Map, Value},
};

/// Prefix of environment variables.
pub(crate) const ENV_PREFIX: &str = "SAESWEEP_";

/// All layers in one.
pub(crate) struct Layers {
    figment: Figment,
    places: Vec<Place>,
    offsets: Offsets,
    source: SpecSource,
    /// The merged values.
    pub(crate) dict: Dict,
}

/// One layer as figment sees it; its number is the index of its place.
struct Layer {
    number: usize,
    dict: Dict,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::from("layer", Source::Custom(self.number.to_string()))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.dict.clone()))
    }
}

/// Reads and merges the layers.
pub(crate) fn read_layers(source: &SpecSource, problems: &mut Vec<Problem>) -> Layers {
    let file_place = Place::File { path: source.path.clone(), line: None };
    let mut layers = Layers {
        figment: Figment::new(),
        places: Vec::new(),
        offsets: Offsets::default(),
        source: source.clone(),
        dict: Dict::new(),
    };
    layers.add(Place::Default, read_file("built-in defaults", DEFAULTS_TOML), problems);
    let file = read_file(&source.path, &source.text);
    layers.offsets = file.offsets.clone();
    layers.add(file_place, file, problems);
    let mut env = source.env.clone();
    env.sort();
    for (name, value) in &env {
        let Some(read) = read_variable(name, value, problems) else { continue };
        layers.add(Place::Env(name.clone()), read, problems);
    }
    for text in &source.overrides {
        let place = Place::Override(text.clone());
        let Some(read) = read_override(text, &place, problems) else { continue };
        layers.add(place, read, problems);
    }
    let data = layers.figment.data().expect("invariant: no layer fails to give its values");
    layers.dict = data.into_values().next().unwrap_or_default();
    layers
}

impl Layers {
    fn add(&mut self, place: Place, read: Read, problems: &mut Vec<Problem>) {
        problems.extend(read.problems);
        let layer = Layer { number: self.places.len(), dict: read.dict };
        self.places.push(place);
        self.figment = std::mem::take(&mut self.figment).merge(layer);
    }

    /// Where the value at this path was written.
    pub(crate) fn place(&self, path: &str, value: &Value) -> Place {
        let number = self
            .figment
            .get_metadata(value.tag())
            .and_then(|metadata| metadata.source.as_ref()?.custom()?.parse::<usize>().ok());
        match number.and_then(|number| self.places.get(number)) {
            Some(Place::File { .. }) | None => self.file_place(path),
            Some(place) => place.clone(),
        }
    }

    /// The line of this path in the file, or of what is around it.
    pub(crate) fn file_place(&self, path: &str) -> Place {
        let line = self.offsets.of(path).map(|offset| line_of(&self.source.text, offset));
        Place::File { path: self.source.path.clone(), line }
    }

    /// What comes first in the file comes first; what is not in the file comes last.
    pub(crate) fn position(&self, path: &str) -> usize {
        self.offsets.of(path).unwrap_or(usize::MAX)
    }
}

/// `SAESWEEP_TRAIN__LR`. Variables without a double underscore are the program's own, such as
/// `SAESWEEP_LOG`, unless they spell a setting with one underscore too few.
fn read_variable(name: &str, value: &str, problems: &mut Vec<Problem>) -> Option<Read> {
    let rest = name.strip_prefix(ENV_PREFIX)?;
    let lower = rest.to_ascii_lowercase();
    let place = Place::Env(name.to_owned());
    if !lower.contains("__") {
        let key = KEYS.iter().find(|key| key.name.replace('.', "_") == lower)?;
        problems.push(Problem {
            place,
            key: lower,
            fault: Fault::UnknownKey,
            found: format!("{name} = {value}"),
            expected: "two underscores between section and setting".to_owned(),
            hint: Some(format!(
                "did you mean {ENV_PREFIX}{}?",
                key.name.to_ascii_uppercase().replace('.', "__")
            )),
        });
        return None;
    }
    let segments: Vec<String> = lower.split("__").map(str::to_owned).collect();
    check_head(&segments, &place, &format!("{name} = {value}"), problems)?;
    Some(read_assignment(&segments, value, &place, wants_text(&segments)))
}

/// `key=value`.
fn read_override(text: &str, place: &Place, problems: &mut Vec<Problem>) -> Option<Read> {
    let mut fault = |key: &str, found: String, hint: Option<String>| {
        problems.push(Problem {
            place: place.clone(),
            key: key.to_owned(),
            fault: Fault::NoAssignment,
            found,
            expected: "key=value, for example train.lr=1e-4".to_owned(),
            hint,
        });
        None
    };
    // A key may be quoted, `axes."train.lr"`, but none that is meant has `=` in it.
    let Some((key, value)) = text.split_once('=') else {
        return fault("", format!("{text:?}"), None);
    };
    let segments = match split_key(key) {
        Some(segments) => segments,
        None => return fault("", format!("the key {key:?}"), None),
    };
    check_head(&segments, place, text, problems)?;
    Some(read_assignment(&segments, value, place, wants_text(&segments)))
}

/// Splits a dotted TOML key.
fn split_key(key: &str) -> Option<Vec<String>> {
    let document = format!("{} = 0", key.trim());
    let mut value = document.parse::<toml::Table>().ok().map(toml::Value::Table)?;
    let mut segments = Vec::new();
    while let toml::Value::Table(table) = value {
        let (segment, inner) = table.into_iter().next()?;
        segments.extend(segment.split('.').map(str::to_owned));
        value = inner;
    }
    Some(segments)
}

/// From outside the file, only sections can be addressed; anything else is reported here, with the name as
/// the user gave it.
fn check_head(segments: &[String], place: &Place, found: &str, problems: &mut Vec<Problem>) -> Option<()> {
    let head = segments.first()?.as_str();
    if SECTIONS.contains(&head) || VARIATION.contains(&head) {
        return Some(());
    }
    let name = segments.join(".");
    problems.push(Problem {
        place: place.clone(),
        key: name.clone(),
        fault: Fault::UnknownKey,
        found: found.to_owned(),
        expected: format!("a setting of one of the sections {}", SECTIONS.join(", ")),
        hint: suggest::setting(&name),
    });
    None
}

/// Whether the setting is a text or an expression, so that `--set sweep.name=7` is one too.
fn wants_text(segments: &[String]) -> bool {
    segments[0] == "derive"
        || find(&segments.join("."))
            .is_some_and(|key| matches!(key.kind, Kind::Text { .. } | Kind::Folder | Kind::Word(_)))
}
