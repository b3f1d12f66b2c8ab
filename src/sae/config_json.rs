//! `cfg.json` as SAELens 6 has it, written; `config_read` reads it.
//!
//! Keys are written in sorted order and nothing in the file depends on when or where it was written.

use super::inference::Sae;
use crate::trial::{
    ActivationSource, Architecture, DataConfig, SaeConfig, SequenceSeparator, TrialConfig, TrialId,
};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The SAELens release whose format this is. Its loader refuses files without a version of 6 or later.
pub(super) const SAE_LENS_VERSION: &str = "6.54.12";

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

/// The text of `cfg.json` for an SAE.
pub(super) fn write(sae: &Sae, info: &SaveInfo) -> String {
    let cfg = &sae.cfg;
    let mut top = BTreeMap::from([
        ("architecture", json!(cfg.architecture.name())),
        ("apply_b_dec_to_input", json!(cfg.apply_b_dec_to_input)),
        ("d_in", json!(sae.d_in)),
        ("d_sae", json!(cfg.d_sae)),
        ("device", json!("cpu")),
        ("dtype", json!("float32")),
        ("metadata", metadata(info)),
        ("normalize_activations", json!(cfg.normalize_activations)),
        ("reshape_activations", json!(reshape(&info.config))),
    ]);
    if let Architecture::TopK { k, rescale_acts_by_decoder_norm, .. }
    | Architecture::AbsTopK { k, rescale_acts_by_decoder_norm, .. } = cfg.architecture
    {
        top.insert("k", json!(k));
        top.insert("rescale_acts_by_decoder_norm", json!(rescale_acts_by_decoder_norm));
    }
    let mut text = serde_json::to_string_pretty(&top).expect("invariant: JSON values serialize");
    text.push('\n');
    text
}

/// SAELens flattens the heads of `hook_z` itself when this says so.
pub(super) fn reshape(config: &TrialConfig) -> &'static str {
    let is_z = config.source.model().is_some_and(|(model, _)| model.hook.ends_with("hook_z"));
    if is_z { "hook_z" } else { "none" }
}

fn metadata(info: &SaveInfo) -> Value {
    let config = &info.config;
    let metrics: BTreeMap<_, _> = info.metrics.iter().filter(|(_, value)| value.is_finite()).collect();
    let mut map = BTreeMap::from([
        ("exclude_special_tokens", json!(false)),
        ("hook_head_index", Value::Null),
        ("sae_lens_training_version", Value::Null),
        ("sae_lens_version", json!(SAE_LENS_VERSION)),
        ("saesweep_metrics", json!(metrics)),
        ("saesweep_store", json!(info.store_key)),
        ("saesweep_trial", json!(info.trial)),
        ("saesweep_version", json!(env!("CARGO_PKG_VERSION"))),
        ("seqpos_slice", json!([null])),
        ("training_architecture", json!(config.sae.architecture.name())),
        ("training_architecture_details", Value::Object(details(&config.sae))),
    ]);
    map.extend(source(&config.source));
    if let Some(l0) = info.l0.filter(|l0| l0.is_finite()) {
        map.insert("l0", json!(l0));
    }
    if let Some(dead) = info.num_dead_features {
        map.insert("num_dead_features", json!(dead));
    }
    json!(map)
}

/// Where the activations came from, as far as SAELens has words for it.
fn source(source: &ActivationSource) -> BTreeMap<&'static str, Value> {
    let Some((model, data)) = source.model() else {
        let dataset = match source {
            ActivationSource::Files(files) => json!(files.files),
            _ => Value::Null,
        };
        return BTreeMap::from([
            ("dataset_path", dataset),
            ("hook_name", Value::Null),
            ("model_name", Value::Null),
            ("saesweep_source", json!(source.name())),
        ]);
    };
    BTreeMap::from([
        ("context_size", json!(data.context_size)),
        ("dataset_path", json!(data.dataset)),
        ("disable_concat_sequences", json!(data.disable_concat_sequences)),
        ("hook_name", json!(model.hook)),
        ("model_class_name", json!("HookedTransformer")),
        // Weights as published: centring would shift what the hook sees.
        ("model_from_pretrained_kwargs", json!({ "center_writing_weights": false })),
        ("model_name", json!(model.name)),
        ("prepend_bos", json!(data.prepend_bos)),
        ("sequence_separator_token", separator(data)),
    ])
}

/// What stands between two documents, in SAELens' words.
pub(super) fn separator(data: &DataConfig) -> Value {
    match data.sequence_separator_token {
        SequenceSeparator::None => Value::Null,
        other => json!(other),
    }
}

/// The settings that only training needs, by name.
pub(super) fn details(cfg: &SaeConfig) -> Map<String, Value> {
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
    }
    map.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
