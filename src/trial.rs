//! A trial: the complete, typed configuration of one SAE training run, and its identity.
//!
//! Plain data that every part shares. A [`TrialConfig`] has no optional settings left to fill in: the
//! defaults live in `spec/defaults.toml` alone, and `spec` is the only place that builds one from user
//! input. Start with [`TrialConfig`]; [`TrialJob`] is what a trial process reads from its `config.toml`.

mod architecture;
mod options;
mod source;

pub use architecture::{Architecture, SparsityLossMode};
pub use options::{BDecInit, TrainOptions};
pub use source::{ActivationSource, FilesConfig, ToyConfig};

use serde::{Deserialize, Serialize};

/// Everything that can change the result of one trial. Its canonical form is what a [`TrialId`] hashes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrialConfig {
    /// Where activations come from, with the settings that only this source has.
    #[serde(flatten)]
    pub source: ActivationSource,
    /// The activation store.
    pub store: StoreConfig,
    /// The sparse autoencoder.
    pub sae: SaeConfig,
    /// The training run.
    pub train: TrainConfig,
    /// The evaluation on held-out data.
    pub eval: EvalConfig,
}

/// `[model]`: the language model and the hook whose activations are learnt, or for a transcoder the two hooks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Hub id (`org/name`, optionally `@revision`), local folder, or `.gguf` file, as written in the sweep.
    pub name: String,
    /// TransformerLens hook name, for example `blocks.0.hook_mlp_out`.
    pub hook: String,
    /// The hook whose activations a transcoder computes from those at `hook`; empty for an SAE, which computes
    /// those at `hook` themselves. Left out where it is empty, so that configurations of SAEs keep their ids.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hook_out: String,
}

/// `[data]`: the data set and its tokenisation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// Hub id, or local `.parquet`, `.jsonl`, `.csv`, `.txt` file or a folder of them.
    pub dataset: String,
    /// Column to read; empty means the first of `tokens`, `input_ids`, `text`, `problem` that exists.
    pub column: String,
    /// Tokens in one sequence.
    pub context_size: usize,
    /// Whether every sequence starts with the BOS token.
    pub prepend_bos: bool,
    /// What stands between two documents of one sequence.
    pub sequence_separator_token: SequenceSeparator,
    /// One document per sequence: documents shorter than the context are dropped.
    pub disable_concat_sequences: bool,
    /// Share of the documents, taken from the end, that is held out for evaluation.
    pub eval_fraction: f64,
    /// At most this many held-out tokens are kept in the store.
    pub eval_max_tokens: usize,
}

/// `data.sequence_separator_token`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SequenceSeparator {
    /// The tokenizer's beginning-of-sequence token.
    Bos,
    /// The tokenizer's end-of-sequence token.
    Eos,
    /// The tokenizer's separator token.
    Sep,
    /// Nothing.
    None,
}

/// `[store]`: what part of the activations is kept, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreConfig {
    /// Training activations (rows) in the store; when the data has fewer, all of them. A trial that trains
    /// on more tokens than the store holds passes over it several times.
    pub tokens: u64,
    /// Number format on disk.
    pub dtype: StoreDtype,
    /// Rows of the buffer through which training rows are shuffled while they are written.
    pub shuffle_buffer_rows: usize,
    /// Seed of that shuffle.
    pub shuffle_seed: u64,
}

/// Number format of stored activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreDtype {
    /// IEEE single precision.
    Float32,
    /// IEEE half precision.
    Float16,
    /// Brain float, the upper half of a float32.
    Bfloat16,
}

impl StoreDtype {
    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Self::Float32 => 4,
            Self::Float16 | Self::Bfloat16 => 2,
        }
    }
}

/// `[sae]`: the sparse autoencoder. Setting names are SAELens' own (6.54).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SaeConfig {
    /// Number of latents.
    pub d_sae: usize,
    /// Whether `b_dec` is subtracted from the input before the encoder.
    pub apply_b_dec_to_input: bool,
    /// How activations are scaled before training.
    pub normalize_activations: NormalizeActivations,
    /// L2 norm of every decoder row at the start; 0 leaves the Kaiming initialisation as it is.
    pub decoder_init_norm: f64,
    /// Folder of an SAE that training starts from, as written in the sweep; empty draws the weights. Left out
    /// where it is empty: configurations from before it was there keep their ids.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub init_from: String,
    /// The architecture with the settings that only it has.
    #[serde(flatten)]
    pub architecture: Architecture,
}

/// `sae.normalize_activations`, SAELens' modes (6.54).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormalizeActivations {
    /// Activations as they are.
    None,
    /// One scalar so that the mean L2 norm is sqrt(d_in); folded into the weights at the end.
    ExpectedAverageOnlyIn,
    /// Every row to norm sqrt(d_in), undone on the output.
    ConstantNormRescale,
    /// Every row to mean 0 and standard deviation 1, undone on the output.
    LayerNorm,
    /// Whitened by the covariance of the training rows; folded into the weights at the end.
    CovarianceWhitening,
}

/// `[train]`: the training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Activations trained on.
    pub tokens: u64,
    /// Activations in one step.
    pub batch_size: usize,
    /// Peak learning rate.
    pub lr: f64,
    /// Learning rate at the end of the cosine schedules.
    pub lr_end: f64,
    /// Shape of the learning rate between warm-up and decay.
    pub lr_scheduler_name: LrScheduler,
    /// Steps of linear warm-up.
    pub lr_warm_up_steps: u64,
    /// Steps of linear decay to 0 at the end.
    pub lr_decay_steps: u64,
    /// Cycles of the warm-restart schedule.
    pub n_restart_cycles: u64,
    /// Adam's first decay rate.
    pub adam_beta1: f64,
    /// Adam's second decay rate.
    pub adam_beta2: f64,
    /// Seed of the initial weights.
    pub seed: u64,
    /// Seed of the order of the batches, and of resampling.
    pub data_seed: u64,
    /// A latent is dead after more than this many steps without firing.
    pub dead_feature_window: u64,
    /// Steps over which firing frequencies are counted.
    pub feature_sampling_window: u64,
    /// What SAELens does not have.
    #[serde(flatten)]
    pub options: TrainOptions,
}

impl TrainConfig {
    /// Steps of the run: `ceil(tokens / batch_size)`, as SAELens' loop does them.
    pub fn steps(&self) -> u64 {
        self.tokens.div_ceil(self.batch_size as u64)
    }

    /// Steps the schedules are laid out over: `floor(tokens / batch_size)`, as SAELens' schedulers do.
    pub fn schedule_steps(&self) -> u64 {
        self.tokens / self.batch_size as u64
    }
}

/// `train.lr_scheduler_name`, SAELens' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LrScheduler {
    /// The peak rate throughout.
    Constant,
    /// Half a cosine from `lr` to `lr_end`.
    CosineAnnealing,
    /// Several such half cosines.
    CosineAnnealingWarmRestarts,
}

/// `[eval]`: the evaluation on held-out data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalConfig {
    /// Whether special tokens (BOS, EOS, PAD …) are left out of the averages and keep their activations.
    pub exclude_special_tokens: bool,
}

/// `[run]`: how trials are run. Nothing here can change a result, so nothing here is part of an id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// How often a trial that died without a verdict is started again.
    pub retries: u32,
    /// What a failed trial means for the rest.
    pub on_failure: OnFailure,
    /// Steps between two lines of `metrics.jsonl`.
    pub log_every_steps: u64,
    /// Steps between two checkpoints; 0 leaves it to the minutes.
    pub checkpoint_every_steps: u64,
    /// Minutes between two checkpoints; 0 leaves it to the steps.
    pub checkpoint_every_minutes: f64,
    /// Seconds a trial gets to write its checkpoint before it is killed.
    pub grace_secs: f64,
}

/// `run.on_failure`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// The other trials go on.
    Continue,
    /// No new trials are started; running ones end.
    Stop,
}

/// Identity of a trial: the first 12 hexadecimal digits of the BLAKE3 hash of its canonical configuration.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TrialId(pub String);

impl std::fmt::Display for TrialId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.0)
    }
}

/// What a trial process reads: `trials/<id>/config.toml`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrialJob {
    /// Identity, the hash of `config`.
    pub id: TrialId,
    /// Key of the activation store it trains on.
    pub store_key: String,
    /// BLAKE3 of the weights it starts from, where it starts from some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_blake3: Option<String>,
    /// How it is run.
    pub run: RunConfig,
    /// The configuration.
    #[serde(flatten)]
    pub config: TrialConfig,
}

/// How a trial ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrialStatus {
    /// Trained and evaluated.
    Done,
    /// The loss became NaN or infinite.
    Diverged,
    /// It ended with an error, or died more often than `run.retries` allows.
    Failed,
}

/// `trials/<id>/result.json`: the verdict of a trial, written once, last of all its files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrialResult {
    /// Version of this format; see [`RESULT_VERSION`].
    pub version: u32,
    /// Identity.
    pub id: TrialId,
    /// Key of the store it was trained on.
    pub store_key: String,
    /// BLAKE3 of the weights it started from, where it started from some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_blake3: Option<String>,
    /// Verdict.
    pub status: TrialStatus,
    /// One line on why, when the status is not `done`.
    pub reason: Option<String>,
    /// Steps completed.
    pub steps: u64,
    /// Activation width.
    pub d_in: usize,
    /// Metrics by name (see `metric.rs`); a metric that could not be computed is absent, never NaN.
    pub metrics: std::collections::BTreeMap<String, f64>,
    /// Share of latents per decade of firing frequency: `log10_density[i]` counts latents whose
    /// log10 density lies in [-10 + i/2, -10 + (i+1)/2); the first bin also takes those that never fired.
    pub log10_density: Vec<u64>,
    /// Where and how fast it ran; not part of the result's identity.
    pub timing: TrialTiming,
}

/// Version of [`TrialResult`]; raise it when a field changes its meaning or a required one is added.
pub const RESULT_VERSION: u32 = 1;

/// Times of a trial, all attempts together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrialTiming {
    /// Seconds of training in the last attempt.
    pub train_secs: f64,
    /// Seconds of evaluation.
    pub eval_secs: f64,
    /// Training tokens per second in the last attempt.
    pub tokens_per_sec: f64,
    /// Slot of the last attempt, for example `cpu:0`.
    pub slot: String,
    /// Threads it was given.
    pub threads: usize,
    /// What trained: the instruction set of the CPU kernels, for example `avx512`, or `cuda (candle)`.
    pub isa: String,
}
