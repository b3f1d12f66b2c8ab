//! Options of a training run that SAELens does not have, and one that it has and this program had not from the start.
//!
//! All are off by default, and off is what their absence from a configuration means: files written before an
//! option existed read as before, and a trial that uses none has the id it always had. Their defaults in
//! `spec/defaults.toml` are the same, which a test holds.

use serde::{Deserialize, Serialize};

/// The settings of `[train]` that go beyond SAELens.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainOptions {
    /// Steps between two resamplings of dead latents (Bricken et al. 2023); 0 for none.
    pub resample_every_steps: u64,
    /// The last step after which latents are resampled; 0 for the whole run.
    pub resample_until_step: u64,
    /// Whether decoder rows are kept at norm 1, gradients along them left out (Bricken et al. 2023).
    pub normalize_sae_decoder: bool,
    /// Where the decoder's bias starts.
    pub b_dec_init_method: BDecInit,
    /// Whether the auxiliary loss is divided by the variance of what it makes up for (Gao et al. 2024).
    pub normalize_aux_loss: bool,
    /// Steps over which k falls to its value; 0 for none.
    pub k_anneal_steps: u64,
    /// Where k falls from; 0 is the activations' width.
    pub k_start: u64,
    /// Activations of a norm above this many times the store's median are not trained on; 0 for all.
    pub max_norm_multiple: f64,
    /// Whether a BatchTopK's threshold is freed of its start at 0.
    pub topk_threshold_bias_correction: bool,
    /// SAELens' own: whether the big products are in bfloat16. On GPUs only.
    pub autocast: bool,
}

/// `train.b_dec_init_method`, with the names of SAELens 5.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BDecInit {
    /// At 0.
    #[default]
    Zeros,
    /// At the mean of the first activations.
    Mean,
    /// At their geometric median (Gao et al. 2024).
    GeometricMedian,
}

#[cfg(test)]
mod tests {
    use super::super::TrainConfig;
    use serde_json::{Value, json};

    fn settings() -> Value {
        json!({
            "tokens": 640, "batch_size": 32, "lr": 1e-3, "lr_end": 1e-4, "lr_scheduler_name": "constant",
            "lr_warm_up_steps": 0, "lr_decay_steps": 0, "n_restart_cycles": 1, "adam_beta1": 0.9,
            "adam_beta2": 0.999, "seed": 1, "data_seed": 1, "dead_feature_window": 10,
            "feature_sampling_window": 10
        })
    }

    #[test]
    fn absent_options_are_off_and_unknown_settings_are_refused() {
        let config: TrainConfig = serde_json::from_value(settings()).unwrap();
        assert_eq!(config.options, super::TrainOptions::default());
        let with = |name: &str, value: Value| {
            let mut settings = settings();
            settings[name] = value;
            serde_json::from_value::<TrainConfig>(settings)
        };
        assert_eq!(with("k_anneal_steps", json!(7)).unwrap().options.k_anneal_steps, 7);
        assert_eq!(with("max_norm_multiple", json!(3)).unwrap().options.max_norm_multiple, 3.0);
        let error = with("resample_every_step", json!(7)).unwrap_err().to_string();
        assert!(error.contains("unknown field `resample_every_step`"), "{error}");
    }

    #[test]
    fn options_are_settings_of_their_section() {
        let config: TrainConfig = serde_json::from_value(settings()).unwrap();
        let text = toml::to_string(&config).unwrap();
        assert!(text.contains("\nb_dec_init_method = \"zeros\"\n"), "{text}");
        assert_eq!(toml::from_str::<TrainConfig>(&text).unwrap(), config);
    }
}
