//! One axis: its definition in the file, and the values it takes.
//!
//! Points of an axis must be the same on every machine, because trial ids hash them: inner points of `log`
//! and draws of ranges are rounded to 6 significant digits, which hides the last-bit differences between
//! mathematical libraries (and reads well); the ends are exact.

use super::{
    error::{Fault, Problem},
    keys::{Key, Kind},
    layers::Layers,
    setting::{Mismatch, Setting, coerce, number, show, write_toml},
    suggest,
};
use figment::value::{Dict, Value};

/// The words that make a table the definition of an axis.
pub(crate) const AXIS_WORDS: &[&str] =
    &["linear", "log", "uniform", "log_uniform", "int_uniform", "choice", "repeats"];

/// Seeds: the settings that `{ repeats = n }` is for.
const SEEDS: &[&str] = &["train.seed", "train.data_seed", "store.shuffle_seed"];

/// Most points of one axis.
const MAX_STEPS: i128 = 100_000;

/// An axis of the sweep as it was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// The setting that varies.
    pub key: String,
    /// The definition, as TOML on one line.
    pub definition: String,
    /// Its values in order; empty for a range that is drawn from.
    pub values: Vec<serde_json::Value>,
}

/// What an axis can be.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Points {
    /// These values.
    Finite(Vec<Setting>),
    /// This many seeds, from the fixed one up.
    Repeats(i64),
    /// A range to draw from.
    Range(Range),
}

/// A range to draw from, both ends included.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Range {
    shape: Shape,
    from: f64,
    to: f64,
    whole: bool,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Shape {
    Uniform,
    LogUniform,
    IntUniform,
}

impl Range {
    /// The value at a position in [0, 1).
    pub(crate) fn at(&self, position: f64) -> Setting {
        let Self { shape, from, to, whole } = *self;
        let (low, high) = (from.min(to), from.max(to));
        let x = match shape {
            Shape::Uniform => low + (high - low) * position,
            Shape::LogUniform => low * (high / low).powf(position),
            Shape::IntUniform => low + ((high - low + 1.0) * position).floor(),
        };
        if whole {
            // Whole numbers this large have a float of their own; the definition was checked for that.
            Setting::Int(x.round().clamp(low, high) as i64)
        } else {
            Setting::Float(significant(x, 6).clamp(low, high))
        }
    }
}

/// Rounds to so many significant decimal digits.
pub(crate) fn significant(x: f64, digits: usize) -> f64 {
    format!("{x:.*e}", digits - 1).parse().unwrap_or(x)
}

/// Reads the definition of an axis over `key`, which stands at `path`.
pub(crate) fn read_axis(
    key: &Key,
    path: &str,
    value: &Value,
    layers: &Layers,
    problems: &mut Vec<Problem>,
) -> Option<Points> {
    let n_before = problems.len();
    let mut reader = AxisReader { key, path, layers, problems };
    let points = match value {
        Value::Array(_, items) => reader.list(path, items, value),
        Value::Dict(_, dict) => reader.table(dict, value),
        _ => {
            let hint = format!("a fixed value belongs under [{}]", key.section());
            reader.bad(
                path,
                value,
                "a list of values, or a table such as { log = [1e-5, 1e-3], steps = 5 }",
                hint,
            );
            None
        }
    };
    points.filter(|_| reader.problems.len() == n_before)
}

/// The definition as TOML.
pub(crate) fn definition(value: &Value) -> String {
    write_toml(value)
}

struct AxisReader<'a> {
    key: &'a Key,
    path: &'a str,
    layers: &'a Layers,
    problems: &'a mut Vec<Problem>,
}

impl AxisReader<'_> {
    fn push(&mut self, path: &str, value: &Value, mismatch: Mismatch) {
        let Mismatch { fault, found, expected, hint } = mismatch;
        let place = self.layers.place(path, value);
        self.problems.push(Problem { place, key: path.to_owned(), fault, found, expected, hint });
    }

    fn bad(&mut self, path: &str, value: &Value, expected: &str, hint: impl Into<Option<String>>) {
        let mismatch = Mismatch {
            fault: Fault::BadAxis,
            found: show(value),
            expected: expected.to_owned(),
            hint: hint.into(),
        };
        self.push(path, value, mismatch);
    }

    fn coerced(&mut self, path: &str, value: &Value) -> Option<Setting> {
        match coerce(self.key, value) {
            Ok(setting) => Some(setting),
            Err(mut mismatch) => {
                if matches!(value, Value::Array(..) | Value::Dict(..)) {
                    mismatch.hint = None;
                }
                self.push(path, value, mismatch);
                None
            }
        }
    }

    fn list(&mut self, path: &str, items: &[Value], whole: &Value) -> Option<Points> {
        if items.is_empty() {
            self.bad(path, whole, "at least one value", None);
            return None;
        }
        let mut settings: Vec<Setting> = Vec::new();
        for (idx, item) in items.iter().enumerate() {
            let path = format!("{path}[{idx}]");
            let Some(setting) = self.coerced(&path, item) else { continue };
            if let Some(first) = settings.iter().position(|earlier| *earlier == setting) {
                let mismatch = Mismatch {
                    fault: Fault::Alike,
                    found: format!("{}, the same value as [{first}]", show(item)),
                    expected: "every value once".to_owned(),
                    hint: repeats_hint(self.key),
                };
                self.push(&path, item, mismatch);
            }
            settings.push(setting);
        }
        Some(Points::Finite(settings))
    }

    fn table(&mut self, dict: &Dict, whole: &Value) -> Option<Points> {
        let mut kinds = dict.keys().filter(|word| *word != "steps");
        let (Some(kind), None) = (kinds.next().cloned(), kinds.next()) else {
            let shapes =
                "one of linear, log (each with steps), choice, repeats, uniform, log_uniform, int_uniform";
            self.bad(self.path, whole, shapes, foreign_hint(dict));
            return None;
        };
        let value = &dict[&kind];
        let path = format!("{}.{kind}", self.path);
        let steps = dict.get("steps");
        match kind.as_str() {
            "linear" | "log" => {
                let Some(steps) = steps else {
                    let example = format!("{{ {kind} = {}, steps = 5 }}", show(value));
                    self.bad(
                        self.path,
                        whole,
                        "steps, the number of points",
                        format!("for example {example}"),
                    );
                    return None;
                };
                let ends = self.ends(&path, value, kind == "log");
                let steps = self.steps(steps);
                self.spaced(&path, value, ends?, steps?, kind == "log")
            }
            "uniform" | "log_uniform" | "int_uniform" => {
                if let Some(steps) = steps {
                    let hint = format!(
                        "for evenly spaced points use {}",
                        if kind == "log_uniform" { "log" } else { "linear" }
                    );
                    self.bad(&format!("{}.steps", self.path), steps, "no steps: a range is drawn from", hint);
                }
                let (from, to) = self.ends(&path, value, kind == "log_uniform")?;
                let whole = matches!(self.key.kind, Kind::Int { .. } | Kind::Count { .. });
                let shape = match kind.as_str() {
                    "uniform" if whole => {
                        let expected = format!("int_uniform: {} is a whole number", self.key.name);
                        self.bad(&path, value, &expected, format!("{{ int_uniform = {} }}", show(value)));
                        return None;
                    }
                    "uniform" => Shape::Uniform,
                    "log_uniform" => Shape::LogUniform,
                    _ => {
                        if from.fract() != 0.0 || to.fract() != 0.0 {
                            self.bad(&path, value, "two whole numbers", None);
                            return None;
                        }
                        Shape::IntUniform
                    }
                };
                Some(Points::Range(Range { shape, from, to, whole }))
            }
            "choice" => match value {
                Value::Array(_, items) => self.list(&path, items, value),
                _ => {
                    self.bad(&path, value, "a list of values", None);
                    None
                }
            },
            "repeats" => self.repeats(&path, value),
            _ => {
                let hint = foreign_hint(dict).or_else(|| {
                    suggest::nearest(&kind, AXIS_WORDS.iter().copied())
                        .map(|word| format!("did you mean {word}?"))
                });
                let shapes = "one of linear, log, choice, repeats, uniform, log_uniform, int_uniform";
                self.bad(&path, value, shapes, hint);
                None
            }
        }
    }

    fn repeats(&mut self, path: &str, value: &Value) -> Option<Points> {
        if !SEEDS.contains(&self.key.name) {
            let expected = format!("an axis over a seed: {}", SEEDS.join(", "));
            self.bad(path, value, &expected, None);
            return None;
        }
        match number(value) {
            Some(super::setting::Number::Whole(n)) if (1..=MAX_STEPS).contains(&n) => {
                Some(Points::Repeats(i64::try_from(n).expect("invariant: at most MAX_STEPS")))
            }
            _ => {
                self.bad(path, value, "a whole number, at least 1", None);
                None
            }
        }
    }

    /// `[from, to]`, both fit for the setting.
    fn ends(&mut self, path: &str, value: &Value, log: bool) -> Option<(f64, f64)> {
        if !matches!(self.key.kind, Kind::Int { .. } | Kind::Count { .. } | Kind::Float(_)) {
            self.bad(path, value, "a list of values: this setting is no number", None);
            return None;
        }
        let items = value.as_array().filter(|items| items.len() == 2);
        let Some(items) = items else {
            self.bad(path, value, "two numbers, [from, to]", None);
            return None;
        };
        if log && items.iter().any(|item| number(item).is_some_and(|x| x.to_f64() <= 0.0)) {
            self.bad(path, value, "two numbers above 0: a log scale has no 0", None);
            return None;
        }
        let mut ends = [0.0; 2];
        for (idx, item) in items.iter().enumerate() {
            ends[idx] = match self.coerced(&format!("{path}[{idx}]"), item)? {
                Setting::Int(x) if x.unsigned_abs() <= 1 << 53 => x as f64,
                Setting::Float(x) => x,
                _ => {
                    self.bad(path, value, "two numbers, at most 2^53", None);
                    return None;
                }
            };
        }
        if ends[0] == ends[1] {
            self.bad(path, value, "two different ends", None);
            return None;
        }
        Some((ends[0], ends[1]))
    }

    fn steps(&mut self, value: &Value) -> Option<usize> {
        match number(value) {
            Some(super::setting::Number::Whole(n)) if (2..=MAX_STEPS).contains(&n) => {
                Some(usize::try_from(n).expect("invariant: at most MAX_STEPS"))
            }
            _ => {
                let expected = format!("a whole number from 2 to {MAX_STEPS}: both ends are included");
                self.bad(&format!("{}.steps", self.path), value, &expected, None);
                None
            }
        }
    }

    fn spaced(
        &mut self,
        path: &str,
        value: &Value,
        ends: (f64, f64),
        steps: usize,
        log: bool,
    ) -> Option<Points> {
        let (from, to) = ends;
        let whole = matches!(self.key.kind, Kind::Int { .. } | Kind::Count { .. });
        let mut settings: Vec<Setting> = Vec::with_capacity(steps);
        for step in 0..steps {
            let share = step as f64 / (steps - 1) as f64;
            let x = if step == 0 {
                from
            } else if step == steps - 1 {
                to
            } else if log {
                significant(from * (to / from).powf(share), if whole { 12 } else { 6 })
            } else {
                significant(from + (to - from) * share, 12)
            };
            let setting = if whole { Setting::Int(x.round() as i64) } else { Setting::Float(x) };
            if settings.last() == Some(&setting) {
                let expected =
                    format!("{steps} different values; rounded, two of them are {}", setting.to_toml());
                self.bad(path, value, &expected, "take fewer steps".to_owned());
                return None;
            }
            settings.push(setting);
        }
        Some(Points::Finite(settings))
    }
}

fn repeats_hint(key: &Key) -> Option<String> {
    (!SEEDS.contains(&key.name))
        .then(|| "to run a trial several times, vary the seed: train.seed = { repeats = 3 }".to_owned())
}

/// How other tools write axes.
fn foreign_hint(dict: &Dict) -> Option<String> {
    if dict.contains_key("values") {
        return Some("write the list itself: [1, 2, 3]".to_owned());
    }
    if dict.contains_key("min") || dict.contains_key("max") || dict.contains_key("from") {
        return Some(
            "write the ends as a list: { log_uniform = [1e-5, 1e-3] } or { log = […], steps = 5 }".to_owned(),
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_keeps_significant_digits() {
        assert_eq!(significant(3.162_277_660_168_379e-5, 6), 3.16228e-5);
        assert_eq!(significant(0.300_000_000_000_000_04, 12), 0.3);
        assert_eq!(significant(-123_456.78, 3), -123_000.0);
    }

    #[test]
    fn draws_stay_within_their_range() {
        for shape in [Shape::Uniform, Shape::LogUniform, Shape::IntUniform] {
            for whole in [false, true] {
                let range = Range { shape, from: 3.0, to: 7.0, whole };
                for position in [0.0, 0.1, 0.5, 0.999_999_999_999_999_9] {
                    let x = match range.at(position) {
                        Setting::Int(x) => x as f64,
                        Setting::Float(x) => x,
                        other => panic!("{other:?}"),
                    };
                    assert!((3.0..=7.0).contains(&x), "{shape:?} {position} {x}");
                }
            }
        }
        let die = Range { shape: Shape::IntUniform, from: 1.0, to: 6.0, whole: true };
        assert_eq!(die.at(0.999), Setting::Int(6));
        assert_eq!(die.at(0.0), Setting::Int(1));
    }
}
