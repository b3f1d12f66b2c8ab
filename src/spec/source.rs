//! Text to untyped values, with the line of every one.
//!
//! TOML is read with spans, brought into one shape, and handed on as figment dictionaries. The shape: keys
//! under `axes`, `derive`, `zip` and `trial` are flat dotted names, whether they were written bare
//! (`sae.d_sae = …`), quoted (`"sae.d_sae" = …`) or under a header (`[axes.sae]`).

use super::{
    axes::AXIS_WORDS,
    error::{Fault, Place, Problem},
    keys::find,
};
use figment::value::{Dict, Tag, Value};
use std::collections::BTreeMap;
use toml::de::{DeTable, DeValue};

/// Everything a sweep is read from. Pure: no file is opened here.
#[derive(Debug, Clone, Default)]
pub struct SpecSource {
    /// Name of the sweep file, for messages; its folder is where relative paths start.
    pub path: String,
    /// The file's text.
    pub text: String,
    /// Environment variables; those that name settings (`SAESWEEP_TRAIN__LR`) are used.
    pub env: Vec<(String, String)>,
    /// `--set` arguments, `key=value`, later ones winning.
    pub overrides: Vec<String>,
}

/// Byte offset of every written value, by its path (`axes.sae.d_sae[2]`).
#[derive(Debug, Clone, Default)]
pub(crate) struct Offsets(BTreeMap<String, usize>);

impl Offsets {
    /// The offset of the path, or else of the nearest thing around it.
    pub(crate) fn of(&self, path: &str) -> Option<usize> {
        let mut path = path;
        loop {
            if let Some(offset) = self.0.get(path) {
                return Some(*offset);
            }
            path = &path[..path.rfind(['.', '['])?];
        }
    }
}

/// A table read from text: the values, where they stood, and what could not be read.
#[derive(Debug, Default)]
pub(crate) struct Read {
    pub(crate) dict: Dict,
    pub(crate) offsets: Offsets,
    pub(crate) problems: Vec<Problem>,
}

/// Line, from 1, of a byte offset.
pub(crate) fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count()
}

/// Reads a sweep file. With a syntax error, nothing but syntax errors is reported: what follows a slip is
/// seldom what the user meant. A key given twice is no such error; the first value stands.
pub(crate) fn read_file(path: &str, text: &str) -> Read {
    let place = |offset: usize| Place::File { path: path.to_owned(), line: Some(line_of(text, offset)) };
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut reader = Reader { place: &place, read: Read::default() };
    let mut last_line = None;
    let mut broken = false;
    let mut twice = Vec::new();
    for error in &errors {
        let span = error.span().unwrap_or(0..0);
        let line = line_of(text, span.start);
        if error.message() == "duplicate key" {
            twice.push(span);
            continue;
        }
        broken = true;
        // One slip often upsets the rest of its line; the first message is the useful one.
        if last_line == Some(line) {
            continue;
        }
        last_line = Some(line);
        let written = line_text(text, line);
        let hint = syntax_hint(written);
        // toml says "what is wrong, expected what".
        let (message, expected) =
            error.message().split_once(", expected ").unwrap_or((error.message(), "TOML"));
        let expected = match (message, expected) {
            ("invalid boolean", _) | (_, "nothing") => {
                "a value: text in quotes, a number, true or false, [ a list ]"
            }
            _ => expected,
        };
        let found = match written {
            "" => format!("the end of the file: {message}"),
            written => format!("{written}  ({message})"),
        };
        reader.problem(span.start, "", Fault::Syntax, &found, expected, hint);
    }
    if broken {
        return reader.read;
    }
    reader.file(table.get_ref());
    for span in twice {
        reader.given_twice(text, span);
    }
    reader.read
}

/// A line, from 1, without the space around it.
fn line_text(text: &str, line: usize) -> &str {
    text.lines().nth(line - 1).unwrap_or_default().trim()
}

/// The header above an offset, `axes` for `[axes]`.
fn section_at(text: &str, offset: usize) -> String {
    let mut headers = text[..offset].lines().filter(|line| line.trim_start().starts_with('['));
    // The last piece before the offset may be the beginning of a header that is itself the duplicate.
    let header = headers.rfind(|line| line.contains(']')).unwrap_or_default();
    let inner = header.trim().trim_start_matches('[').split(']').next().unwrap_or_default();
    inner.trim().to_owned()
}

fn syntax_hint(line: &str) -> Option<String> {
    let value = line.split_once('=').map(|(_, value)| value.trim());
    match value {
        Some(value) if value.starts_with("True") || value.starts_with("False") => {
            Some("TOML writes true and false in lower case".to_owned())
        }
        Some("None" | "null") => Some("TOML has no null; leave the setting out".to_owned()),
        Some(value) if value.starts_with('.') => Some("write a digit before the point: 0.5".to_owned()),
        Some(value) if value.starts_with(|c: char| c.is_alphabetic()) => Some("text needs quotes".to_owned()),
        None if line.contains(':') && !line.starts_with('[') => {
            Some("TOML puts `=` between key and value".to_owned())
        }
        _ => None,
    }
}

/// Reads one value given from outside the file under a dotted key, `train.lr` or `axes.train.lr`. A value
/// that is no TOML is text.
pub(crate) fn read_assignment(key: &[String], value: &str, at: &Place, as_text: bool) -> Read {
    let place = |_: usize| at.clone();
    let mut reader = Reader { place: &place, read: Read::default() };
    let text = value.trim();
    let parsed = DeValue::parse(text);
    let mut converted = match &parsed {
        Ok(parsed) if !matches!(parsed.get_ref(), DeValue::Datetime(_)) => {
            let path = key.join(".");
            reader.value(&path, parsed.get_ref())
        }
        _ => Value::from(text.to_owned()),
    };
    if as_text && converted.as_str().is_none() {
        converted = Value::from(text.to_owned());
    }
    let (head, rest) = (key[0].as_str(), key[1..].join("."));
    let under_head = |value: Value| Dict::from([(head.to_owned(), value)]);
    reader.read.dict = match (head, converted) {
        ("axes" | "derive", Value::Dict(_, dict)) if rest.is_empty() => {
            under_head(wrap_axes(head, flatten(head, "", dict)).into())
        }
        ("axes" | "derive", converted) if !rest.is_empty() => {
            let flat = flatten(head, "", Dict::from([(rest, converted)]));
            under_head(wrap_axes(head, flat).into())
        }
        ("zip" | "trial", Value::Array(_, items)) if rest.is_empty() => {
            let flat = items.into_iter().map(|item| match item {
                Value::Dict(_, dict) => flatten(head, "", dict).into(),
                other => other,
            });
            under_head(flat.collect::<Vec<Value>>().into())
        }
        (_, mut value) => {
            for segment in key[1..].iter().rev() {
                value = Value::from(Dict::from([(segment.clone(), value)]));
            }
            under_head(value)
        }
    };
    reader.read
}

/// Layers are merged table by table, but an axis is replaced as a whole: it travels inside an array.
fn wrap_axes(section: &str, dict: Dict) -> Dict {
    if section != "axes" {
        return dict;
    }
    dict.into_iter().map(|(key, value)| (key, Value::Array(Tag::Default, vec![value]))).collect()
}

/// Makes nested tables flat, stopping at values.
fn flatten(root: &str, prefix: &str, dict: Dict) -> Dict {
    let mut flat = Dict::new();
    for (key, value) in dict {
        let name = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
        match value {
            Value::Dict(_, inner) if !is_value(root, &name, inner.keys().map(String::as_str)) => {
                flat.extend(flatten(root, &name, inner));
            }
            other => {
                flat.insert(name, other);
            }
        }
    }
    flat
}

/// Whether a table under `axes` and the like is a value rather than a level of a dotted name.
fn is_value<'a>(root: &str, name: &str, mut inner: impl Iterator<Item = &'a str>) -> bool {
    let is_axis = root.starts_with("axes") || root.starts_with("zip");
    find(name).is_some() || (is_axis && inner.any(|word| AXIS_WORDS.contains(&word)))
}

struct Reader<'a> {
    place: &'a dyn Fn(usize) -> Place,
    read: Read,
}

impl Reader<'_> {
    fn problem(
        &mut self,
        offset: usize,
        key: &str,
        fault: Fault,
        found: &str,
        expected: &str,
        hint: Option<String>,
    ) {
        self.read.problems.push(Problem {
            place: (self.place)(offset),
            key: key.to_owned(),
            fault,
            found: found.to_owned(),
            expected: expected.to_owned(),
            hint,
        });
    }

    /// Reports a key that has a value already.
    fn given_twice(&mut self, text: &str, span: std::ops::Range<usize>) {
        let written = line_text(text, line_of(text, span.start));
        let key = text.get(span.clone()).unwrap_or_default();
        let section = section_at(text, span.start);
        let key = match written.starts_with('[') || section.is_empty() {
            true => key.to_owned(),
            false => format!("{section}.{key}"),
        };
        // Of a table given twice, the later header is the one remembered.
        let header = |line: &str| line.trim().starts_with('[') && line.trim() == written;
        let first = match written.starts_with('[') {
            true => text.lines().position(header).map(|idx| format!("line {}", idx + 1)),
            false => self.read.offsets.of(&key).map(|offset| (self.place)(offset).phrase()),
        };
        let first = first.map_or_else(String::new, |first| format!("; the first is on {first}"));
        let found = format!("{written}{first}");
        let (expected, hint) = match written.starts_with('[') {
            true => ("one table of this name", Some("put its settings together".to_owned())),
            false => ("one value", None),
        };
        self.problem(span.start, &key, Fault::GivenTwice, &found, expected, hint);
    }

    fn file(&mut self, table: &DeTable<'_>) {
        for (key, value) in table {
            let (name, offset) = (key.get_ref().as_ref(), key.span().start);
            self.read.offsets.0.insert(name.to_owned(), offset);
            let converted = match (name, value.get_ref()) {
                ("axes" | "derive", DeValue::Table(inner)) => {
                    let mut flat = Dict::new();
                    self.flat_table(name, "", inner, &mut flat);
                    Value::from(wrap_axes(name, flat))
                }
                ("zip" | "trial", DeValue::Array(items)) => {
                    let mut tables = Vec::new();
                    for (idx, item) in items.iter().enumerate() {
                        let path = format!("{name}[{idx}]");
                        self.read.offsets.0.insert(path.clone(), item.span().start);
                        tables.push(match item.get_ref() {
                            DeValue::Table(inner) => {
                                let mut flat = Dict::new();
                                self.flat_table(&path, "", inner, &mut flat);
                                Value::from(flat)
                            }
                            other => self.value(&path, other),
                        });
                    }
                    Value::from(tables)
                }
                (_, other) => self.value(name, other),
            };
            self.read.dict.insert(name.to_owned(), converted);
        }
    }

    /// Adds a table's values under flat dotted names.
    fn flat_table(&mut self, root: &str, prefix: &str, table: &DeTable<'_>, flat: &mut Dict) {
        for (key, value) in table {
            let name = if prefix.is_empty() {
                key.get_ref().as_ref().to_owned()
            } else {
                format!("{prefix}.{}", key.get_ref())
            };
            match value.get_ref() {
                DeValue::Table(inner)
                    if !is_value(root, &name, inner.keys().map(|word| word.get_ref().as_ref())) =>
                {
                    self.flat_table(root, &name, inner, flat);
                }
                other => {
                    let path = format!("{root}.{name}");
                    let offset = key.span().start;
                    if flat.contains_key(&name) {
                        let first = self.read.offsets.0.get(&path).copied().unwrap_or(0).min(offset);
                        let second = self.read.offsets.0.get(&path).copied().unwrap_or(0).max(offset);
                        let found =
                            format!("a second value; the first is on {}", (self.place)(first).phrase());
                        self.problem(second, &path, Fault::GivenTwice, &found, "one value", None);
                        continue;
                    }
                    self.read.offsets.0.insert(path.clone(), offset);
                    let converted = self.value(&path, other);
                    flat.insert(name, converted);
                }
            }
        }
    }

    /// Converts a value and notes where its parts stand. `path` itself is noted by the caller.
    fn value(&mut self, path: &str, value: &DeValue<'_>) -> Value {
        match value {
            DeValue::String(text) => Value::from(text.as_ref().to_owned()),
            DeValue::Boolean(x) => Value::from(*x),
            DeValue::Integer(x) => match i128::from_str_radix(x.as_str(), x.radix()) {
                Ok(number) => Value::from(number),
                // Beyond i128: as a float it is still recognised as far out of range.
                Err(_too_large) => Value::from(f64::INFINITY),
            },
            DeValue::Float(x) => Value::from(x.as_str().parse::<f64>().unwrap_or(f64::NAN)),
            DeValue::Datetime(x) => {
                let offset = self.read.offsets.of(path).unwrap_or(0);
                let hint = Some("text needs quotes".to_owned());
                self.problem(
                    offset,
                    path,
                    Fault::WrongType,
                    &x.to_string(),
                    "no date: no setting is one",
                    hint,
                );
                Value::from(x.to_string())
            }
            DeValue::Array(items) => {
                let mut converted = Vec::new();
                for (idx, item) in items.iter().enumerate() {
                    let path = format!("{path}[{idx}]");
                    self.read.offsets.0.insert(path.clone(), item.span().start);
                    converted.push(self.value(&path, item.get_ref()));
                }
                Value::from(converted)
            }
            DeValue::Table(table) => {
                let mut dict = Dict::new();
                for (key, inner) in table {
                    let path = format!("{path}.{}", key.get_ref());
                    self.read.offsets.0.insert(path.clone(), key.span().start);
                    let converted = self.value(&path, inner.get_ref());
                    dict.insert(key.get_ref().as_ref().to_owned(), converted);
                }
                Value::from(dict)
            }
        }
    }
}
