//! Plans and configurations as TOML: the record that a run keeps, and the snippet that a report prints.

use super::{
    error::Place,
    expand::Parts,
    identity::{flat, is_option_off},
    keys::{KEYS, MODE, SECTIONS, Scope, Used, trial_keys},
    layers::Layers,
    plan::{Plan, PlannedTrial},
    sections::Fixed,
    setting::{float_text, quoted, write_toml},
    variation::Variation,
};
use crate::trial::TrialConfig;
use figment::value::Value;
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// The sweep after all layers, as a sweep file that gives the same trials.
pub fn resolved_toml(plan: &Plan) -> String {
    plan.spec.resolved.clone()
}

/// Writes the sweep after all layers. What came from outside the file says so.
pub(crate) fn resolved(path: &str, parts: Parts<'_>, trials: &[PlannedTrial]) -> String {
    let Parts { layers, fixed, variation } = parts;
    let used: BTreeSet<&str> = trials.iter().flat_map(|trial| used_keys(&trial.config)).collect();
    let mut text = format!("# {path} after all layers, every setting that its trials use.\n");
    for section in SECTIONS {
        let mut is_begun = false;
        for key in KEYS.iter().filter(|key| key.section() == *section) {
            let Some((setting, place)) = fixed.values.get(key.name) else { continue };
            if key.scope == Scope::Trial
                && (!used.contains(key.name) || is_replaced_always(variation, key.name))
            {
                continue;
            }
            if !is_begun {
                line(&mut text, &format!("\n[{section}]"));
                is_begun = true;
            }
            let name =
                key.name.strip_prefix(section).and_then(|rest| rest.strip_prefix('.')).unwrap_or(key.name);
            let comment = match place {
                Place::Env(_) | Place::Override(_) => format!(" # {place}").replace(['\n', '\r'], " "),
                Place::File { .. } | Place::Default => String::new(),
            };
            line(&mut text, &format!("{name} = {}{comment}", setting.to_toml()));
        }
    }
    if !variation.axes.is_empty() {
        line(&mut text, "\n[axes]");
        for axis in &variation.axes {
            line(&mut text, &format!("{} = {}", axis.key, axis.definition));
        }
    }
    for part in ["zip", "trial"] {
        for table in tables(layers, part) {
            let entries: Vec<_> = table.into_iter().filter(|(key, _)| !is_replaced(fixed, key)).collect();
            if !entries.is_empty() || part == "trial" {
                line(&mut text, &format!("\n[[{part}]]"));
            }
            for (key, value) in entries {
                line(&mut text, &format!("{key} = {}", write_toml(&value)));
            }
        }
    }
    if !variation.derived.is_empty() {
        line(&mut text, "\n[derive]");
        for derived in &variation.derived {
            line(&mut text, &format!("{} = {}", derived.key.name, quoted(&derived.formula.text)));
        }
    }
    for exclude in &variation.excludes {
        line(&mut text, "\n[[exclude]]");
        line(&mut text, &format!("when = {}", quoted(&exclude.formula.text)));
        if let Some(reason) = &exclude.reason {
            line(&mut text, &format!("reason = {}", quoted(reason)));
        }
    }
    text
}

fn line(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("invariant: writing to a string succeeds");
}

fn tables(layers: &Layers, part: &str) -> Vec<figment::value::Dict> {
    match layers.dict.get(part) {
        Some(Value::Array(_, items)) => items.iter().filter_map(|item| item.as_dict().cloned()).collect(),
        _ => Vec::new(),
    }
}

/// Whether a setting is fixed from outside the file, so that nothing varies it.
fn is_replaced(fixed: &Fixed, key: &str) -> bool {
    fixed.place(key).is_some_and(|place| place.height() >= 2)
}

/// Whether every trial has its own value of a setting, so that the fixed one says nothing. Repeats count up
/// from it, and a `[[trial]]` may leave the others' axes out.
fn is_replaced_always(variation: &Variation<'_>, key: &str) -> bool {
    let repeats =
        || variation.dimensions.iter().any(|dimension| dimension.repeats && dimension.keys.contains(&key));
    variation.given.is_empty() && variation.places.contains_key(key) && !repeats()
}

/// Settings that a trial reads, but for options that are off.
fn used_keys(config: &TrialConfig) -> Vec<&'static str> {
    let flat = flat(config);
    let scheduler = flat.get("train.lr_scheduler_name").and_then(serde_json::Value::as_str);
    let mode = flat.get(MODE).and_then(serde_json::Value::as_str);
    trial_keys()
        .filter(|key| flat.contains_key(key.name) && !is_option_off(key.name, &flat[key.name]))
        .filter(|key| match key.used {
            Used::Schedulers(names) => scheduler.is_some_and(|scheduler| names.contains(&scheduler)),
            Used::Modes(names) => mode.is_some_and(|mode| names.contains(&mode)),
            Used::Starts(names) => names.contains(&config.sae.init_from.as_str()),
            Used::DrawnJumpRelus => config.sae.init_from.is_empty(),
            // Only settings that the trial's architecture, source and options use are there at all.
            Used::Always | Used::Architectures(_) | Used::Sources(_) | Used::With(_) => true,
        })
        .map(|key| key.name)
        .collect()
}

/// A configuration as the sections of a sweep file, to be copied into one.
pub fn trial_toml_snippet(config: &TrialConfig) -> String {
    let flat = flat(config);
    let used = used_keys(config);
    let mut text = String::new();
    let mut section = "";
    for key in used {
        let (of, name) = key.split_once('.').expect("invariant: settings have sections");
        if of != section {
            if !text.is_empty() {
                line(&mut text, "");
            }
            line(&mut text, &format!("[{of}]"));
            section = of;
        }
        line(&mut text, &format!("{name} = {}", json_as_toml(&flat[key])));
    }
    text
}

fn json_as_toml(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::Number(number) => match number.as_f64() {
            Some(x) if number.is_f64() => float_text(x),
            _ => number.to_string(),
        },
        serde_json::Value::String(text) => quoted(text),
        other => other.to_string(),
    }
}
