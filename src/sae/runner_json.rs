//! `runner_cfg.json`: a trial's configuration in the words of SAELens' `LanguageModelSAERunnerConfig`.
//!
//! Every field of 6.54 is there, so that `LanguageModelSAERunnerConfig.from_dict` takes the file; what has no
//! counterpart here has SAELens' default.

use super::config_json::{SAE_LENS_VERSION, details, reshape, separator};
use crate::trial::{Architecture, SaeConfig, TrialConfig};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The text of `runner_cfg.json` for an SAE of width `d_in`; `None` where the activations are not a language
/// model's, for which SAELens has no such file.
pub(super) fn write(config: &TrialConfig, d_in: usize) -> Option<String> {
    let (model, data) = config.source.model()?;
    let train = &config.train;
    let settings = BTreeMap::from([
        ("adam_beta1", json!(train.adam_beta1)),
        ("adam_beta2", json!(train.adam_beta2)),
        ("context_size", json!(data.context_size)),
        ("dataset_path", json!(data.dataset)),
        ("dead_feature_window", json!(train.dead_feature_window)),
        ("disable_concat_sequences", json!(data.disable_concat_sequences)),
        ("feature_sampling_window", json!(train.feature_sampling_window)),
        ("from_pretrained_path", init_from(&config.sae)),
        ("hook_name", json!(model.hook)),
        ("lr", json!(train.lr)),
        ("lr_decay_steps", json!(train.lr_decay_steps)),
        ("lr_end", json!(train.lr_end)),
        ("lr_scheduler_name", json!(train.lr_scheduler_name)),
        ("lr_warm_up_steps", json!(train.lr_warm_up_steps)),
        ("model_name", json!(model.name)),
        ("n_restart_cycles", json!(train.n_restart_cycles)),
        ("prepend_bos", json!(data.prepend_bos)),
        ("sae", sae(&config.sae, d_in, reshape(config))),
        ("sae_lens_version", json!(SAE_LENS_VERSION)),
        ("seed", json!(train.seed)),
        ("sequence_separator_token", separator(data)),
        ("train_batch_size_tokens", json!(train.batch_size)),
        ("training_tokens", json!(train.tokens)),
    ]);
    let defaults = defaults();
    let all: BTreeMap<&str, &Value> = defaults
        .iter()
        .map(|(name, value)| (name.as_str(), value))
        .chain(settings.iter().map(|(name, value)| (*name, value)))
        .collect();
    let mut text = serde_json::to_string_pretty(&all).expect("invariant: JSON values serialize");
    text.push('\n');
    Some(text)
}

/// Fields without a counterpart, as SAELens has them by default.
fn defaults() -> Map<String, Value> {
    let places = json!({
        "act_store_device": "cpu",
        "cached_activations_path": null,
        "checkpoint_path": null,
        "device": "cpu",
        "dtype": "float32",
        "eval_batch_size_prompts": null,
        "hook_eval": "NOT_IN_USE",
        "llm_device": "cpu",
        "logger": logger(),
        "n_checkpoints": 0,
        "n_eval_batches": 10,
        "output_path": "output",
        "resume_from_checkpoint": null,
        "save_final_checkpoint": false,
        "use_cached_activations": false,
        "verbose": true,
    });
    let methods = json!({
        "activations_mixing_fraction": 0.5,
        "autocast": false,
        "autocast_lm": false,
        "compile_llm": false,
        "compile_sae": false,
        "dataset_trust_remote_code": true,
        "dead_feature_threshold": 1e-8,
        "exclude_special_tokens": false,
        "hook_head_index": null,
        "is_dataset_tokenized": true,
        "llm_compilation_mode": null,
        "model_class_name": "HookedTransformer",
        "model_from_pretrained_kwargs": { "center_writing_weights": false },
        "model_kwargs": {},
        "n_batches_for_norm_estimate": 1000,
        "n_batches_in_buffer": 20,
        "prefetch_llm_batches": false,
        "sae_compilation_mode": null,
        "sae_lens_training_version": null,
        "seqpos_slice": [null],
        "store_batch_size_prompts": 32,
        "streaming": true,
        "use_chat_formatting": false,
    });
    let objects = [places, methods].into_iter().filter_map(|value| match value {
        Value::Object(fields) => Some(fields),
        _ => None,
    });
    objects.flatten().collect()
}

/// Where fine-tuning started.
fn init_from(cfg: &SaeConfig) -> Value {
    if cfg.init_from.is_empty() { Value::Null } else { json!(cfg.init_from) }
}

/// `LoggingConfig`, which we have no use for.
fn logger() -> Value {
    json!({
        "eval_every_n_wandb_logs": 100,
        "log_activations_store_to_wandb": false,
        "log_optimizer_state_to_wandb": false,
        "log_to_wandb": false,
        "log_weights_to_wandb": false,
        "run_name": null,
        "wandb_entity": null,
        "wandb_id": null,
        "wandb_log_frequency": 10,
        "wandb_project": "sae_lens_training",
    })
}

/// The SAE as it was trained, before anything was folded.
fn sae(cfg: &SaeConfig, d_in: usize, reshape: &str) -> Value {
    let mut fields: Map<String, Value> = details(cfg);
    let base = json!({
        "apply_b_dec_to_input": cfg.apply_b_dec_to_input,
        "architecture": cfg.architecture.name(),
        "d_in": d_in,
        "d_sae": cfg.d_sae,
        "device": "cpu",
        "dtype": "float32",
        "normalize_activations": cfg.normalize_activations,
        "reshape_activations": reshape,
    });
    if let Value::Object(base) = base {
        fields.extend(base);
    }
    if let Architecture::TopK { k, rescale_acts_by_decoder_norm, .. }
    | Architecture::AbsTopK { k, rescale_acts_by_decoder_norm, .. } = cfg.architecture
    {
        fields.insert("k".to_owned(), json!(k));
        fields.insert("rescale_acts_by_decoder_norm".to_owned(), json!(rescale_acts_by_decoder_norm));
    }
    fields.sort_keys();
    Value::Object(fields)
}
