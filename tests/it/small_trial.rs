//! The complete configuration of a small trial; tests change in it what they are about.

use saesweep::trial::{
    ActivationSource, Architecture, DataConfig, EvalConfig, LrScheduler, ModelConfig, NormalizeActivations,
    SaeConfig, SequenceSeparator, StoreConfig, StoreDtype, TrainConfig, TrainOptions, TrialConfig,
};

/// A standard SAE of 8 latents, with schedules off.
pub(crate) fn small_trial() -> TrialConfig {
    TrialConfig {
        source: ActivationSource::Model {
            model: ModelConfig { name: "org/model".to_owned(), hook: "blocks.0.hook_mlp_out".to_owned() },
            data: DataConfig {
                dataset: "org/data".to_owned(),
                column: String::new(),
                context_size: 16,
                prepend_bos: true,
                sequence_separator_token: SequenceSeparator::Bos,
                disable_concat_sequences: false,
                eval_fraction: 0.02,
                eval_max_tokens: 64,
            },
        },
        store: StoreConfig {
            tokens: 640,
            dtype: StoreDtype::Float32,
            shuffle_buffer_rows: 64,
            shuffle_seed: 0,
        },
        sae: SaeConfig {
            d_sae: 8,
            apply_b_dec_to_input: false,
            normalize_activations: NormalizeActivations::None,
            decoder_init_norm: 0.1,
            init_from: String::new(),
            architecture: Architecture::Standard { l1_coefficient: 1.0, lp_norm: 1.0, l1_warm_up_steps: 0 },
        },
        train: TrainConfig {
            tokens: 640,
            batch_size: 32,
            lr: 1e-3,
            lr_end: 1e-4,
            lr_scheduler_name: LrScheduler::Constant,
            lr_warm_up_steps: 0,
            lr_decay_steps: 0,
            n_restart_cycles: 1,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            seed: 1,
            data_seed: 1,
            dead_feature_window: 10,
            feature_sampling_window: 10,
            options: TrainOptions::default(),
        },
        eval: EvalConfig { exclude_special_tokens: false },
    }
}

/// Its model.
pub(crate) fn model_of(cfg: &mut TrialConfig) -> &mut ModelConfig {
    let ActivationSource::Model { model, .. } = &mut cfg.source else { panic!("a model's activations") };
    model
}

/// Its data.
pub(crate) fn data_of(cfg: &mut TrialConfig) -> &mut DataConfig {
    let ActivationSource::Model { data, .. } = &mut cfg.source else { panic!("a model's activations") };
    data
}
