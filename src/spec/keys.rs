//! The table of all settings: name, kind, range, and whether trials may differ in it.
//!
//! `defaults.toml` documents the settings for users and holds their defaults; this table says what may be
//! written. A test holds the two and the structs of `trial.rs` together. Start with [`KEYS`].

use Kind::{Bool, Folder, Paths, Text, Word, Words};
use Presence::{Auto, Default, Optional, Required};
use Scope::{Sweep, Trial};
use Used::{Always, Architectures, DrawnButFor, DrawnJumpRelus, Modes, Schedulers, Sources, Starts, With};

/// What may be written as a setting's value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Bool,
    /// A whole number in `[min, max]`.
    Int {
        min: i64,
        max: i64,
    },
    /// A number above 0 and at most `max` that is whole, or where the setting is read so, not.
    Count {
        max: i64,
    },
    /// A number in the range.
    Float(Range),
    /// Text; `empty` says whether "" is one.
    Text {
        empty: bool,
    },
    /// Text that can name a folder.
    Folder,
    /// Text that names a file or folder, or a list of such texts.
    Paths,
    /// One of these words.
    Word(&'static [&'static str]),
    /// A list of whole numbers from 1 to `max`.
    Sizes {
        max: i64,
    },
    /// A list of these words.
    Words(&'static [&'static str]),
}

/// A range of numbers, open or closed at either end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Range {
    pub(crate) min: f64,
    pub(crate) min_open: bool,
    pub(crate) max: f64,
    pub(crate) max_open: bool,
}

impl Range {
    pub(crate) fn contains(&self, x: f64) -> bool {
        x.is_finite()
            && (x > self.min || (!self.min_open && x == self.min))
            && (x < self.max || (!self.max_open && x == self.max))
    }
}

impl Kind {
    /// What a value of this kind is, as an error message says it.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Bool => "true or false".to_owned(),
            Self::Int { min, max: i64::MAX } => format!("a whole number, at least {min}"),
            Self::Int { min, max } => format!("a whole number from {min} to {max}"),
            Self::Count { max } => {
                format!("a whole number from 1 to {max}, or for batchtopk and its kin any number above 0")
            }
            Self::Float(range) => {
                let low = if range.min_open { "above" } else { "at least" };
                let high = if range.max_open { "below" } else { "at most" };
                if range.max == f64::INFINITY {
                    format!("a number, {low} {}", range.min)
                } else {
                    format!("a number, {low} {} and {high} {}", range.min, range.max)
                }
            }
            Self::Text { empty: true } => "text in quotes".to_owned(),
            Self::Text { empty: false } => "text in quotes, not empty".to_owned(),
            Self::Folder => {
                "a name for a folder: letters, digits, `.`, `_` and `-`, starting with a letter or digit, at most 100"
                    .to_owned()
            }
            Self::Paths => "a path in quotes, or a list of paths".to_owned(),
            Self::Word(words) => format!("one of {}", listed(words)),
            Self::Sizes { max } => format!("a list of whole numbers from 1 to {max}"),
            Self::Words(words) => format!("a list of {}", listed(words)),
        }
    }
}

/// `"a", "b", "c"`.
pub(crate) fn listed(words: &[&str]) -> String {
    words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
}

/// Whether a setting has a default.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Presence {
    Default,
    /// The default is the word `auto`, which stands for this.
    Auto(&'static str),
    Required,
    Optional,
}

/// Which trials use a setting.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Used {
    Always,
    /// Those with these sources of activations.
    Sources(&'static [&'static str]),
    /// Those of these architectures.
    Architectures(&'static [&'static str]),
    /// Those of these architectures whose weights are drawn at random. It is part of every trial: where an SAE is
    /// started from it has no effect, and for other architectures it is what the text says.
    DrawnButFor(&'static [&'static str], &'static str),
    /// JumpReLUs with these sparsity losses.
    Modes(&'static [&'static str]),
    /// Those with these learning rate schedules.
    Schedulers(&'static [&'static str]),
    /// Those that start from one of these; "" are weights drawn at random.
    Starts(&'static [&'static str]),
    /// JumpReLUs whose weights are drawn at random.
    DrawnJumpRelus,
    /// Those that use this setting, a whole number, at more than 0.
    With(&'static str),
}

/// Whether a setting belongs to a trial or to the sweep as a whole.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Scope {
    Sweep,
    Trial,
}

/// One setting.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Key {
    /// Full dotted name.
    pub(crate) name: &'static str,
    pub(crate) scope: Scope,
    pub(crate) kind: Kind,
    pub(crate) presence: Presence,
    pub(crate) used: Used,
}

impl Key {
    /// What may be written here, `auto` included.
    pub(crate) fn describe(&self) -> String {
        match self.presence {
            Auto(meaning) => format!("{}; or \"auto\" ({meaning})", self.kind.describe()),
            _ => self.kind.describe(),
        }
    }

    pub(crate) fn section(&self) -> &'static str {
        self.name.split_once('.').map_or(self.name, |(section, _)| section)
    }
}

/// Sections that hold settings, in the order of `defaults.toml`.
pub(crate) const SECTIONS: &[&str] =
    &["sweep", "activations", "model", "data", "store", "sae", "train", "eval", "run", "devices", "report"];

/// Parts of a sweep file that say what varies.
pub(crate) const VARIATION: &[&str] = &["axes", "zip", "exclude", "derive", "trial"];

/// The setting that [`Used::Modes`] goes by.
pub(crate) const MODE: &str = "sae.jumprelu_sparsity_loss_mode";

/// Strategies there are.
pub(crate) const STRATEGIES: &[&str] = &["grid", "random", "list"];

const MODEL: Used = Sources(&["model"]);
const TOY: Used = Sources(&["toy"]);
const FILES: Used = Sources(&["files"]);
const STANDARD: Used = Architectures(&["standard"]);
const WITH_L1: Used = Architectures(&["standard", "gated"]);
const TOPK: Used = Architectures(&["topk", "batchtopk", "matryoshka_batchtopk", "abstopk"]);
const BATCHTOPK: Used = Architectures(&["batchtopk", "matryoshka_batchtopk"]);
const MATRYOSHKA: Used = Architectures(&["matryoshka_batchtopk"]);
const JUMPRELU: Used = Architectures(&["jumprelu"]);
const DRAWN: Used = Starts(&[""]);
const PURSUIT: Used = Architectures(&["matching_pursuit"]);
/// Architectures that encode by a matrix and a bias.
const ENCODING: &[&str] =
    &["standard", "gated", "topk", "batchtopk", "matryoshka_batchtopk", "abstopk", "jumprelu"];
const WITH_ENCODER: Used = Architectures(ENCODING);
const UNTIED: Used =
    DrawnButFor(ENCODING, "matching_pursuit starts from decoder rows of norm 1, whatever is written");
const COSINES: &[&str] = &["cosineannealing", "cosineannealingwarmrestarts"];

const fn int(min: i64) -> Kind {
    Kind::Int { min, max: i64::MAX }
}

const fn at_least(min: f64) -> Kind {
    Kind::Float(Range { min, min_open: false, max: f64::INFINITY, max_open: false })
}

const fn above(min: f64) -> Kind {
    Kind::Float(Range { min, min_open: true, max: f64::INFINITY, max_open: false })
}

const fn between(min: f64, min_open: bool, max: f64, max_open: bool) -> Kind {
    Kind::Float(Range { min, min_open, max, max_open })
}

const fn key(scope: Scope, name: &'static str, kind: Kind, presence: Presence) -> Key {
    Key { name, scope, kind, presence, used: Always }
}

const fn used(name: &'static str, used: Used, kind: Kind, presence: Presence) -> Key {
    Key { name, scope: Trial, kind, presence, used }
}

/// A context longer than this is a slip of the finger.
const MAX_CONTEXT: i64 = 1 << 20;
/// More features than this take longer to draw than any SAE to train.
const MAX_FEATURES: i64 = 1 << 20;
/// Sizes of matrices: products of two of them must not overflow.
const MAX_SIZE: i64 = 1 << 30;

/// Every setting, in the order of `defaults.toml`.
pub(crate) const KEYS: &[Key] = &[
    key(Sweep, "sweep.name", Folder, Required),
    key(Sweep, "sweep.strategy", Word(STRATEGIES), Default),
    key(Sweep, "sweep.trials", int(1), Optional),
    key(Sweep, "sweep.seed", int(0), Default),
    key(Sweep, "sweep.max_trials", Kind::Int { min: 1, max: 1_000_000 }, Default),
    key(Sweep, "sweep.objective.metric", Text { empty: false }, Default),
    key(Sweep, "sweep.objective.goal", Word(&["maximize", "minimize"]), Auto("the metric's own direction")),
    key(Trial, "activations.source", Word(&["model", "toy", "files"]), Default),
    used("activations.n_features", TOY, Kind::Int { min: 1, max: MAX_FEATURES }, Required),
    used("activations.d_in", TOY, Kind::Int { min: 1, max: MAX_SIZE }, Required),
    used("activations.mean_active", TOY, above(0.0), Required),
    used("activations.probability_power", TOY, at_least(0.0), Default),
    used("activations.norm_power", TOY, at_least(0.0), Default),
    used("activations.spread", TOY, between(0.0, false, 1.0, false), Default),
    used("activations.correlation", TOY, between(0.0, false, 1.0, false), Default),
    used("activations.group_size", TOY, Kind::Int { min: 1, max: MAX_SIZE }, Default),
    used("activations.noise", TOY, at_least(0.0), Default),
    used("activations.seed", TOY, int(0), Default),
    used("activations.files", FILES, Paths, Required),
    used("activations.tensor", FILES, Text { empty: true }, Default),
    used("activations.eval_fraction", FILES, between(0.0, true, 1.0, true), Default),
    used("activations.eval_rows", Sources(&["toy", "files"]), int(1), Default),
    used("model.name", MODEL, Text { empty: false }, Required),
    used("model.hook", MODEL, Text { empty: false }, Required),
    used("model.hook_out", MODEL, Text { empty: true }, Default),
    used("data.dataset", MODEL, Text { empty: false }, Required),
    used("data.column", MODEL, Text { empty: true }, Default),
    used("data.context_size", MODEL, Kind::Int { min: 2, max: MAX_CONTEXT }, Default),
    used("data.prepend_bos", MODEL, Bool, Default),
    used("data.sequence_separator_token", MODEL, Word(&["bos", "eos", "sep", "none"]), Default),
    used("data.disable_concat_sequences", MODEL, Bool, Default),
    used("data.eval_fraction", MODEL, between(0.0, true, 1.0, true), Default),
    used("data.eval_max_tokens", MODEL, int(2), Default),
    key(Sweep, "store.dir", Text { empty: true }, Default),
    key(Trial, "store.tokens", int(1), Auto("as many as train.tokens")),
    key(Trial, "store.dtype", Word(&["float32", "float16", "bfloat16"]), Default),
    key(Trial, "store.shuffle_buffer_rows", int(1), Default),
    key(Trial, "store.shuffle_seed", int(0), Default),
    key(
        Trial,
        "sae.architecture",
        Word(&[
            "standard",
            "gated",
            "topk",
            "batchtopk",
            "matryoshka_batchtopk",
            "abstopk",
            "jumprelu",
            "matching_pursuit",
        ]),
        Default,
    ),
    key(Trial, "sae.d_sae", Kind::Int { min: 1, max: MAX_SIZE }, Required),
    key(Trial, "sae.apply_b_dec_to_input", Bool, Auto("true, and false with model.hook_out")),
    key(
        Trial,
        "sae.normalize_activations",
        Word(&[
            "none",
            "expected_average_only_in",
            "constant_norm_rescale",
            "layer_norm",
            "covariance_whitening",
        ]),
        Default,
    ),
    used("sae.decoder_init_norm", UNTIED, at_least(0.0), Default),
    key(Trial, "sae.init_from", Text { empty: true }, Default),
    used("sae.l1_coefficient", WITH_L1, at_least(0.0), Default),
    used("sae.lp_norm", STANDARD, above(0.0), Default),
    used("sae.l1_warm_up_steps", WITH_L1, int(0), Default),
    used("sae.k", TOPK, Kind::Count { max: MAX_SIZE }, Default),
    used("sae.aux_loss_coefficient", TOPK, at_least(0.0), Default),
    used("sae.rescale_acts_by_decoder_norm", TOPK, Bool, Default),
    used("sae.topk_threshold_lr", BATCHTOPK, between(0.0, true, 1.0, false), Default),
    used("sae.matryoshka_widths", MATRYOSHKA, Kind::Sizes { max: MAX_SIZE }, Default),
    used("sae.use_matryoshka_aux_loss", MATRYOSHKA, Bool, Default),
    used("sae.jumprelu_init_threshold", DrawnJumpRelus, at_least(0.0), Default),
    used("sae.jumprelu_bandwidth", JUMPRELU, above(0.0), Default),
    used("sae.jumprelu_sparsity_loss_mode", JUMPRELU, Word(&["step", "tanh", "quadratic"]), Default),
    used("sae.l0_coefficient", JUMPRELU, at_least(0.0), Default),
    used("sae.l0_warm_up_steps", JUMPRELU, int(0), Default),
    used("sae.pre_act_loss_coefficient", JUMPRELU, at_least(0.0), Default),
    used("sae.jumprelu_tanh_scale", Modes(&["tanh"]), above(0.0), Default),
    used("sae.jumprelu_ste_to_input", JUMPRELU, Bool, Default),
    used("sae.target_l0", Modes(&["quadratic"]), at_least(0.0), Default),
    used("sae.residual_threshold", PURSUIT, at_least(0.0), Default),
    used("sae.max_iterations", PURSUIT, Kind::Int { min: 0, max: MAX_SIZE }, Default),
    used("sae.stop_on_duplicate_support", PURSUIT, Bool, Default),
    key(Trial, "train.tokens", int(1), Required),
    key(Trial, "train.batch_size", Kind::Int { min: 1, max: MAX_SIZE }, Default),
    key(Trial, "train.lr", above(0.0), Default),
    key(
        Trial,
        "train.lr_scheduler_name",
        Word(&["constant", "cosineannealing", "cosineannealingwarmrestarts"]),
        Default,
    ),
    used("train.lr_end", Schedulers(COSINES), at_least(0.0), Auto("a tenth of train.lr")),
    key(Trial, "train.lr_warm_up_steps", int(0), Default),
    key(Trial, "train.lr_decay_steps", int(0), Default),
    used("train.n_restart_cycles", Schedulers(&["cosineannealingwarmrestarts"]), int(1), Default),
    key(Trial, "train.adam_beta1", between(0.0, false, 1.0, true), Default),
    key(Trial, "train.adam_beta2", between(0.0, false, 1.0, true), Default),
    used("train.seed", DRAWN, int(0), Default),
    key(Trial, "train.data_seed", int(0), Default),
    key(Trial, "train.dead_feature_window", int(1), Default),
    key(Trial, "train.feature_sampling_window", int(1), Default),
    used("train.resample_every_steps", WITH_ENCODER, int(0), Default),
    used("train.resample_until_step", With("train.resample_every_steps"), int(0), Default),
    key(Trial, "train.normalize_sae_decoder", Bool, Default),
    used("train.b_dec_init_method", DRAWN, Word(&["zeros", "mean", "geometric_median"]), Default),
    used("train.normalize_aux_loss", TOPK, Bool, Default),
    used("train.k_anneal_steps", TOPK, int(0), Default),
    used("train.k_start", With("train.k_anneal_steps"), Kind::Int { min: 0, max: MAX_SIZE }, Default),
    key(Trial, "train.max_norm_multiple", at_least(0.0), Default),
    used("train.topk_threshold_bias_correction", BATCHTOPK, Bool, Default),
    key(Trial, "train.autocast", Bool, Default),
    key(Trial, "eval.exclude_special_tokens", Bool, Default),
    key(Sweep, "run.retries", Kind::Int { min: 0, max: 1000 }, Default),
    key(Sweep, "run.on_failure", Word(&["continue", "stop"]), Default),
    key(Sweep, "run.log_every_steps", int(1), Default),
    key(Sweep, "run.checkpoint_every_steps", int(0), Default),
    key(Sweep, "run.checkpoint_every_minutes", at_least(0.0), Default),
    key(Sweep, "run.grace_secs", at_least(0.0), Default),
    key(Sweep, "devices.use", Words(&["cpu", "cuda", "metal"]), Default),
    key(Sweep, "devices.cpu_slots", Kind::Int { min: 0, max: 4096 }, Default),
    key(Sweep, "devices.threads_per_trial", Kind::Int { min: 0, max: 4096 }, Default),
    key(Sweep, "report.template", Text { empty: true }, Default),
    key(Sweep, "report.top", int(1), Default),
];

/// Finds a setting by its full dotted name.
pub(crate) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Whether settings lie below this dotted name.
pub(crate) fn is_prefix(name: &str) -> bool {
    KEYS.iter().any(|key| key.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
}

/// The settings of a trial.
pub(crate) fn trial_keys() -> impl Iterator<Item = &'static Key> {
    KEYS.iter().filter(|key| key.scope == Trial)
}
