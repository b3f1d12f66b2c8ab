//! The identity of a trial: one canonical form of its configuration, and the hash of it.
//!
//! The canonical form is text. Its first line is `saesweep trial 1`; then every setting of the
//! configuration follows on a line of its own, `key=value`, sorted by dotted key:
//!
//! - whole numbers in decimal; other numbers as the shortest decimal digits that give the same f64 back, in
//!   the form `5e-5`, `1e0`, `1.25e3`; `true` and `false`; text as a JSON string;
//! - only settings that the trial uses: those of another SAE architecture or another source of activations
//!   are absent (and `activations.source` itself where it is the default, a language model, and `sae.init_from`
//!   where nothing is started from); a learning rate that no schedule reads has its default, and so have the
//!   settings of weights that are not drawn; so none of them can tell two equal trials apart;
//! - defaults filled in and `auto` worked out, so that writing a default changes nothing;
//! - options beyond SAELens ([`TrainOptions`]) only where they are on, so that a trial keeps its id when the
//!   program gets another one.
//!
//! Device, threads, folders, `[run]` and `[sweep]` are no part of a configuration. The id is the first 12
//! hexadecimal digits of the BLAKE3 hash of this text. A change of the form raises the number in the first
//! line.

use super::keys::{Used, find};
use crate::trial::{TrainOptions, TrialConfig, TrialId};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// First line of the canonical form.
const HEADER: &str = "saesweep trial 1\n";

/// Hexadecimal digits of an id: 48 bits, so that among 10 000 trials a collision has odds of 1 in 5 million.
const ID_DIGITS: usize = 12;

/// A configuration under flat dotted keys, only with the settings it uses.
pub fn flat(config: &TrialConfig) -> BTreeMap<String, Value> {
    let value = serde_json::to_value(config).expect("invariant: a configuration is plain data");
    let mut flat = BTreeMap::new();
    flatten("", value, &mut flat);
    let is_above_zero = |other: &str| flat.get(other).and_then(Value::as_u64).is_some_and(|n| n > 0);
    let foreign: Vec<String> = flat
        .keys()
        .filter(|name| match find(name).map(|key| key.used) {
            Some(Used::Architectures(names)) => !names.contains(&config.sae.architecture.name()),
            Some(Used::With(other)) => !is_above_zero(other),
            // The others are absent from the configuration itself, or have a default.
            Some(
                Used::Sources(_)
                | Used::Modes(_)
                | Used::Schedulers(_)
                | Used::Starts(_)
                | Used::DrawnJumpRelus
                | Used::Always,
            )
            | None => false,
        })
        .cloned()
        .collect();
    foreign.iter().for_each(|name| drop(flat.remove(name)));
    flat
}

/// Whether this setting is an option beyond SAELens and has the value that means it is not used.
pub(crate) fn is_option_off(name: &str, value: &Value) -> bool {
    let off = serde_json::to_value(TrainOptions::default()).expect("invariant: options are plain data");
    name.strip_prefix("train.").is_some_and(|name| off.get(name) == Some(value))
}

fn flatten(prefix: &str, value: Value, flat: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let name = if prefix.is_empty() { key } else { format!("{prefix}.{key}") };
                flatten(&name, value, flat);
            }
        }
        other => {
            flat.insert(prefix.to_owned(), other);
        }
    }
}

/// The canonical form; see the module's page.
pub fn canonical(config: &TrialConfig) -> String {
    let mut text = HEADER.to_owned();
    for (key, value) in flat(config).into_iter().filter(|(key, value)| !is_option_off(key, value)) {
        writeln!(text, "{key}={}", canonical_value(&value)).expect("invariant: writing to a string succeeds");
    }
    text
}

fn canonical_value(value: &Value) -> String {
    match value {
        Value::Number(number) if number.is_f64() => {
            // Adding 0 turns -0 into 0.
            let x = number.as_f64().expect("invariant: it is a float") + 0.0;
            format!("{x:e}")
        }
        other => other.to_string(),
    }
}

/// The identity of a configuration.
pub fn trial_id(config: &TrialConfig) -> TrialId {
    let hash = blake3::hash(canonical(config).as_bytes()).to_hex();
    TrialId(hash[..ID_DIGITS].to_owned())
}
