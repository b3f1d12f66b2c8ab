//! `cfg.json` as SAELens wrote it, from version 6 on and before.
//!
//! Before 6 all keys were at the top and few were required: a file without a version of 6 or later is read as
//! SAELens 6 itself reads it (`handle_pre_6_0_config`).

use crate::trial::{Architecture, NormalizeActivations, SaeConfig, SparsityLossMode};
use serde_json::{Map, Value, json};

/// What is wrong with a `cfg.json`; the caller adds the file's name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigProblem {
    /// The text is no JSON object.
    #[error("is not a JSON object: {0}")]
    NotJson(String),
    /// A key is absent.
    #[error("lacks `{0}`")]
    Missing(&'static str),
    /// A value cannot be used.
    #[error("has `{key}` = {found}, expected {expected}")]
    Value {
        /// Its key.
        key: &'static str,
        /// The value, as JSON.
        found: String,
        /// What would do.
        expected: &'static str,
    },
}

/// The content of a `cfg.json`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ReadConfig {
    /// The settings.
    pub(super) cfg: SaeConfig,
    /// Activation width.
    pub(super) d_in: usize,
    /// Whether the file is of a time before SAELens 6.
    pub(super) is_old: bool,
    /// Where it was trained.
    pub(super) origin: Origin,
}

/// Where an SAE says it was trained.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// Name of the language model.
    pub model: Option<String>,
    /// Hook.
    pub hook: Option<String>,
}

/// Reads a `cfg.json`. Training settings come from the metadata where they are; where they are not they are 0,
/// for inference does not look at them.
pub(super) fn read(text: &str) -> Result<ReadConfig, ConfigProblem> {
    let value: Value = serde_json::from_str(text).map_err(|err| ConfigProblem::NotJson(err.to_string()))?;
    let Value::Object(mut top) = value else {
        return Err(ConfigProblem::NotJson("it is another kind of value".to_owned()));
    };
    let metadata = top.get("metadata").and_then(Value::as_object).cloned().unwrap_or_default();
    let is_old = !is_of_6(&top, &metadata);
    if is_old {
        modernize(&mut top)?;
    }
    let place = if is_old { &top } else { &metadata };
    let word = |key: &str| place.get(key).and_then(Value::as_str).map(str::to_owned);
    let origin = Origin { model: word("model_name"), hook: word("hook_name") };

    let training = metadata.get("training_architecture_details").and_then(Value::as_object);
    let detail = |key: &str| training.and_then(|map| map.get(key)).and_then(Value::as_f64);
    let architecture = architecture(&top, training)?;
    let normalize_activations = match top.get("normalize_activations") {
        None => NormalizeActivations::None,
        Some(mode) => serde_json::from_value(mode.clone()).map_err(|_unknown: serde_json::Error| {
            wrong(&top, "normalize_activations", "one of SAELens' modes, such as \"none\" or \"layer_norm\"")
        })?,
    };
    let cfg = SaeConfig {
        d_sae: size(&top, "d_sae")?,
        // SAELens' own default for a file that does not say.
        apply_b_dec_to_input: flag(&top, "apply_b_dec_to_input", true)?,
        normalize_activations,
        decoder_init_norm: detail("decoder_init_norm").unwrap_or(0.0),
        init_from: String::new(),
        architecture,
    };
    Ok(ReadConfig { cfg, d_in: size(&top, "d_in")?, is_old, origin })
}

/// The architecture, with what it needs to work from the top and the rest from the details of its training.
fn architecture(
    top: &Map<String, Value>,
    training: Option<&Map<String, Value>>,
) -> Result<Architecture, ConfigProblem> {
    let value = |key: &str| training.and_then(|map| map.get(key));
    let detail = |key: &str| value(key).and_then(Value::as_f64).unwrap_or(0.0);
    Ok(match get(top, "architecture")?.as_str() {
        Some("standard") => Architecture::Standard {
            l1_coefficient: detail("l1_coefficient"),
            lp_norm: value("lp_norm").and_then(Value::as_f64).unwrap_or(1.0),
            l1_warm_up_steps: detail("l1_warm_up_steps") as u64,
        },
        Some("gated") => Architecture::Gated {
            l1_coefficient: detail("l1_coefficient"),
            l1_warm_up_steps: detail("l1_warm_up_steps") as u64,
        },
        Some("topk") => Architecture::TopK {
            k: size(top, "k")?,
            aux_loss_coefficient: detail("aux_loss_coefficient"),
            rescale_acts_by_decoder_norm: flag(top, "rescale_acts_by_decoder_norm", false)?,
        },
        Some("abstopk") => Architecture::AbsTopK {
            k: size(top, "k")?,
            aux_loss_coefficient: detail("aux_loss_coefficient"),
            rescale_acts_by_decoder_norm: flag(top, "rescale_acts_by_decoder_norm", false)?,
        },
        Some("jumprelu") => Architecture::JumpRelu {
            jumprelu_init_threshold: detail("jumprelu_init_threshold"),
            jumprelu_bandwidth: detail("jumprelu_bandwidth"),
            jumprelu_sparsity_loss_mode: value("jumprelu_sparsity_loss_mode")
                .and_then(|mode| serde_json::from_value(mode.clone()).ok())
                .unwrap_or(SparsityLossMode::Step),
            l0_coefficient: detail("l0_coefficient"),
            l0_warm_up_steps: detail("l0_warm_up_steps") as u64,
            pre_act_loss_coefficient: detail("pre_act_loss_coefficient"),
            jumprelu_tanh_scale: detail("jumprelu_tanh_scale"),
            jumprelu_ste_to_input: value("jumprelu_ste_to_input").and_then(Value::as_bool).unwrap_or(false),
            target_l0: detail("target_l0"),
        },
        _ => {
            return Err(wrong(
                top,
                "architecture",
                "\"standard\", \"gated\", \"topk\", \"abstopk\" or \"jumprelu\"",
            ));
        }
    })
}

/// Whether SAELens 6 or later wrote the file.
fn is_of_6(top: &Map<String, Value>, metadata: &Map<String, Value>) -> bool {
    let version = |map: &Map<String, Value>| {
        map.get("sae_lens_version")
            .and_then(Value::as_str)
            .filter(|version| !version.is_empty())
            .map(str::to_owned)
    };
    let version = version(top).or_else(|| version(metadata)).unwrap_or_default();
    version.split('.').next().and_then(|major| major.parse::<u32>().ok()).is_some_and(|major| major >= 6)
}

/// Brings a file from before SAELens 6 into the form since.
fn modernize(top: &mut Map<String, Value>) -> Result<(), ConfigProblem> {
    for (old, new) in [("hook_point", "hook_name"), ("activation_fn_str", "activation_fn")] {
        if let Some(value) = top.remove(old) {
            top.entry(new).or_insert(value);
        }
    }
    top.entry("architecture").or_insert(json!("standard"));
    match top.get("activation_fn").map(Value::as_str) {
        None | Some(Some("relu")) => {}
        Some(Some("topk")) => drop(top.insert("architecture".to_owned(), json!("topk"))),
        Some(_) => return Err(wrong(top, "activation_fn", "\"relu\" or \"topk\"")),
    }
    if let Some(k) = top.get("activation_fn_kwargs").and_then(|kwargs| kwargs.get("k")).cloned() {
        top.insert("k".to_owned(), k);
    }
    let mode = match top.get("normalize_activations") {
        None | Some(Value::Null | Value::Bool(false)) => json!("none"),
        Some(Value::Bool(true)) => json!("expected_average_only_in"),
        Some(mode) => mode.clone(),
    };
    top.insert("normalize_activations".to_owned(), mode);
    Ok(())
}

fn get<'a>(top: &'a Map<String, Value>, key: &'static str) -> Result<&'a Value, ConfigProblem> {
    top.get(key).ok_or(ConfigProblem::Missing(key))
}

fn size(top: &Map<String, Value>, key: &'static str) -> Result<usize, ConfigProblem> {
    match get(top, key)?.as_u64() {
        Some(n) if n > 0 => Ok(n as usize),
        _ => Err(wrong(top, key, "a positive whole number")),
    }
}

fn flag(top: &Map<String, Value>, key: &'static str, default: bool) -> Result<bool, ConfigProblem> {
    match top.get(key) {
        None => Ok(default),
        Some(value) => value.as_bool().ok_or_else(|| wrong(top, key, "true or false")),
    }
}

fn wrong(top: &Map<String, Value>, key: &'static str, expected: &'static str) -> ConfigProblem {
    ConfigProblem::Value { key, found: top.get(key).unwrap_or(&Value::Null).to_string(), expected }
}
