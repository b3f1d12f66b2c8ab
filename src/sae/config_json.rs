//! `cfg.json` as SAELens 6 writes and reads it: this module alone knows its keys.
//!
//! Keys are written in sorted order and nothing in the file depends on when or where it was written.

use crate::trial::{
    Architecture, NormalizeActivations, SaeConfig, SequenceSeparator, SparsityLossMode, TrialConfig, TrialId,
};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The SAELens release whose format this is. Its loader refuses files without a version of 6 or later.
const SAE_LENS_VERSION: &str = "6.54.12";

/// Where an SAE comes from and how it did: the `metadata` of `cfg.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct SaveInfo {
    /// The trial that trained it.
    pub trial: TrialId,
    /// Key of the activation store it was trained on.
    pub store_key: String,
    /// The trial's whole configuration; `config.sae` is how it was trained, before any fold.
    pub config: TrialConfig,
    /// Mean latents per token over the last sampling window of training.
    pub l0: Option<f64>,
    /// Latents dead at the end of training.
    pub num_dead_features: Option<u64>,
    /// Metrics by name. What is not finite is left out.
    pub metrics: BTreeMap<String, f64>,
}

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

/// The text of `cfg.json` for an SAE with settings `cfg` and width `d_in`.
pub(super) fn write(cfg: &SaeConfig, d_in: usize, info: &SaveInfo) -> String {
    let mut top = BTreeMap::from([
        ("architecture", json!(cfg.architecture.name())),
        ("apply_b_dec_to_input", json!(cfg.apply_b_dec_to_input)),
        ("d_in", json!(d_in)),
        ("d_sae", json!(cfg.d_sae)),
        ("device", json!("cpu")),
        ("dtype", json!("float32")),
        ("metadata", metadata(info)),
        ("normalize_activations", json!(cfg.normalize_activations)),
        ("reshape_activations", json!(reshape(&info.config.model.hook))),
    ]);
    if let Architecture::TopK { k, rescale_acts_by_decoder_norm, .. }
    | Architecture::AbsTopK { k, rescale_acts_by_decoder_norm, .. } = cfg.architecture
    {
        top.insert("k", json!(k));
        top.insert("rescale_acts_by_decoder_norm", json!(rescale_acts_by_decoder_norm));
    }
    if let Architecture::MatchingPursuit { residual_threshold, max_iterations, stop_on_duplicate_support } =
        cfg.architecture
    {
        let iterations = if max_iterations == 0 { Value::Null } else { json!(max_iterations) };
        top.insert("residual_threshold", json!(residual_threshold));
        top.insert("max_iterations", iterations);
        top.insert("stop_on_duplicate_support", json!(stop_on_duplicate_support));
    }
    let mut text = serde_json::to_string_pretty(&top).expect("invariant: JSON values serialize");
    text.push('\n');
    text
}

/// SAELens flattens the heads of `hook_z` itself when this says so.
fn reshape(hook: &str) -> &'static str {
    if hook.ends_with("hook_z") { "hook_z" } else { "none" }
}

fn metadata(info: &SaveInfo) -> Value {
    let config = &info.config;
    let separator = match config.data.sequence_separator_token {
        SequenceSeparator::None => Value::Null,
        other => json!(other),
    };
    let metrics: BTreeMap<_, _> = info.metrics.iter().filter(|(_, value)| value.is_finite()).collect();
    let mut map = BTreeMap::from([
        ("context_size", json!(config.data.context_size)),
        ("dataset_path", json!(config.data.dataset)),
        ("disable_concat_sequences", json!(config.data.disable_concat_sequences)),
        ("exclude_special_tokens", json!(false)),
        ("hook_head_index", Value::Null),
        ("hook_name", json!(config.model.hook)),
        ("model_class_name", json!("HookedTransformer")),
        // Weights as published: centring would shift what the hook sees.
        ("model_from_pretrained_kwargs", json!({ "center_writing_weights": false })),
        ("model_name", json!(config.model.name)),
        ("prepend_bos", json!(config.data.prepend_bos)),
        ("sae_lens_training_version", Value::Null),
        ("sae_lens_version", json!(SAE_LENS_VERSION)),
        ("saesweep_metrics", json!(metrics)),
        ("saesweep_store", json!(info.store_key)),
        ("saesweep_trial", json!(info.trial)),
        ("saesweep_version", json!(env!("CARGO_PKG_VERSION"))),
        ("seqpos_slice", json!([null])),
        ("sequence_separator_token", separator),
        ("training_architecture", json!(config.sae.architecture.name())),
        ("training_architecture_details", details(&config.sae)),
    ]);
    if let Some(l0) = info.l0.filter(|l0| l0.is_finite()) {
        map.insert("l0", json!(l0));
    }
    if let Some(dead) = info.num_dead_features {
        map.insert("num_dead_features", json!(dead));
    }
    json!(map)
}

/// The settings that only training needs.
fn details(cfg: &SaeConfig) -> Value {
    let norm = if cfg.decoder_init_norm == 0.0 { Value::Null } else { json!(cfg.decoder_init_norm) };
    let mut map = BTreeMap::from([("decoder_init_norm", norm)]);
    match cfg.architecture {
        Architecture::Standard { l1_coefficient, lp_norm, l1_warm_up_steps } => {
            map.insert("l1_coefficient", json!(l1_coefficient));
            map.insert("l1_warm_up_steps", json!(l1_warm_up_steps));
            map.insert("lp_norm", json!(lp_norm));
        }
        Architecture::Gated { l1_coefficient, l1_warm_up_steps } => {
            map.insert("l1_coefficient", json!(l1_coefficient));
            map.insert("l1_warm_up_steps", json!(l1_warm_up_steps));
        }
        Architecture::BatchTopK {
            k,
            topk_threshold_lr,
            aux_loss_coefficient,
            rescale_acts_by_decoder_norm,
        } => {
            map.insert("aux_loss_coefficient", json!(aux_loss_coefficient));
            map.insert("k", json!(k));
            map.insert("rescale_acts_by_decoder_norm", json!(rescale_acts_by_decoder_norm));
            map.insert("topk_threshold_lr", json!(topk_threshold_lr));
            map.insert("use_sparse_activations", json!(false));
        }
        Architecture::MatryoshkaBatchTopK {
            k,
            topk_threshold_lr,
            aux_loss_coefficient,
            rescale_acts_by_decoder_norm,
            ref matryoshka_widths,
            use_matryoshka_aux_loss,
        } => {
            map.insert("matryoshka_widths", json!(matryoshka_widths));
            map.insert("use_matryoshka_aux_loss", json!(use_matryoshka_aux_loss));
            map.insert("aux_loss_coefficient", json!(aux_loss_coefficient));
            map.insert("k", json!(k));
            map.insert("rescale_acts_by_decoder_norm", json!(rescale_acts_by_decoder_norm));
            map.insert("topk_threshold_lr", json!(topk_threshold_lr));
            map.insert("use_sparse_activations", json!(false));
        }
        Architecture::TopK { aux_loss_coefficient, .. }
        | Architecture::AbsTopK { aux_loss_coefficient, .. } => {
            map.insert("aux_loss_coefficient", json!(aux_loss_coefficient));
            map.insert("use_sparse_activations", json!(false));
        }
        Architecture::JumpRelu {
            jumprelu_init_threshold,
            jumprelu_bandwidth,
            jumprelu_sparsity_loss_mode,
            l0_coefficient,
            l0_warm_up_steps,
            pre_act_loss_coefficient,
            jumprelu_tanh_scale,
            jumprelu_ste_to_input,
            target_l0,
        } => {
            let unless_zero = |value: f64| if value == 0.0 { Value::Null } else { json!(value) };
            map.insert("jumprelu_bandwidth", json!(jumprelu_bandwidth));
            map.insert("jumprelu_init_threshold", json!(jumprelu_init_threshold));
            map.insert("jumprelu_sparsity_loss_mode", json!(jumprelu_sparsity_loss_mode));
            map.insert("jumprelu_ste_to_input", json!(jumprelu_ste_to_input));
            map.insert("jumprelu_tanh_scale", json!(jumprelu_tanh_scale));
            map.insert("l0_coefficient", json!(l0_coefficient));
            map.insert("l0_warm_up_steps", json!(l0_warm_up_steps));
            map.insert("pre_act_loss_coefficient", unless_zero(pre_act_loss_coefficient));
            map.insert("target_l0", unless_zero(target_l0));
        }
        // All of its settings are needed for inference, too.
        Architecture::MatchingPursuit { .. } => {}
    }
    json!(map)
}

/// Reads a `cfg.json`: the settings and the width. Training settings come from the metadata where they are;
/// where they are not they are 0, for inference does not look at them.
pub(super) fn read(text: &str) -> Result<(SaeConfig, usize), ConfigProblem> {
    let value: Value = serde_json::from_str(text).map_err(|err| ConfigProblem::NotJson(err.to_string()))?;
    let Value::Object(top) = value else {
        return Err(ConfigProblem::NotJson("it is another kind of value".to_owned()));
    };
    let training = top
        .get("metadata")
        .and_then(|metadata| metadata.get("training_architecture_details"))
        .and_then(Value::as_object);
    let detail = |key: &str| training.and_then(|map| map.get(key)).and_then(Value::as_f64).unwrap_or(0.0);

    let architecture = match get(&top, "architecture")?.as_str() {
        Some("standard") => Architecture::Standard {
            l1_coefficient: detail("l1_coefficient"),
            lp_norm: if training.is_some_and(|map| map.contains_key("lp_norm")) {
                detail("lp_norm")
            } else {
                1.0
            },
            l1_warm_up_steps: detail("l1_warm_up_steps") as u64,
        },
        Some("topk") => Architecture::TopK {
            k: size(&top, "k")?,
            aux_loss_coefficient: detail("aux_loss_coefficient"),
            rescale_acts_by_decoder_norm: flag(&top, "rescale_acts_by_decoder_norm", false)?,
        },
        Some("gated") => Architecture::Gated {
            l1_coefficient: detail("l1_coefficient"),
            l1_warm_up_steps: detail("l1_warm_up_steps") as u64,
        },
        Some("abstopk") => Architecture::AbsTopK {
            k: size(&top, "k")?,
            aux_loss_coefficient: detail("aux_loss_coefficient"),
            rescale_acts_by_decoder_norm: flag(&top, "rescale_acts_by_decoder_norm", false)?,
        },
        Some("jumprelu") => Architecture::JumpRelu {
            jumprelu_init_threshold: detail("jumprelu_init_threshold"),
            jumprelu_bandwidth: detail("jumprelu_bandwidth"),
            jumprelu_sparsity_loss_mode: training
                .and_then(|map| serde_json::from_value(map.get("jumprelu_sparsity_loss_mode")?.clone()).ok())
                .unwrap_or(SparsityLossMode::Step),
            l0_coefficient: detail("l0_coefficient"),
            l0_warm_up_steps: detail("l0_warm_up_steps") as u64,
            pre_act_loss_coefficient: detail("pre_act_loss_coefficient"),
            jumprelu_tanh_scale: detail("jumprelu_tanh_scale"),
            jumprelu_ste_to_input: training
                .and_then(|map| map.get("jumprelu_ste_to_input")?.as_bool())
                .unwrap_or(false),
            target_l0: detail("target_l0"),
        },
        Some("matching_pursuit") => Architecture::MatchingPursuit {
            // Without one of them, SAELens' defaults.
            residual_threshold: match top.get("residual_threshold") {
                None => 1e-2,
                Some(value) => value.as_f64().ok_or_else(|| wrong(&top, "residual_threshold", "a number"))?,
            },
            max_iterations: match top.get("max_iterations") {
                None | Some(Value::Null) => 0,
                Some(_) => size(&top, "max_iterations")?,
            },
            stop_on_duplicate_support: flag(&top, "stop_on_duplicate_support", true)?,
        },
        _ => {
            return Err(wrong(
                &top,
                "architecture",
                "\"standard\", \"gated\", \"topk\", \"abstopk\", \"jumprelu\" or \"matching_pursuit\"",
            ));
        }
    };
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
        decoder_init_norm: detail("decoder_init_norm"),
        architecture,
    };
    Ok((cfg, size(&top, "d_in")?))
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
