//! Settings that are fine one by one and wrong together.
//!
//! [`View`] reads a trial's settings with `auto` worked out; [`contradictions`] lists what cannot be. What
//! needs the language model or the data (a hook that exists, enough text) is checked by those who open them.

mod options;

use super::{
    axes::significant,
    keys,
    keys::{MODE, Used},
    setting::{Setting, float_text},
};
use std::collections::BTreeMap;

/// The settings of one trial, complete or not.
#[derive(Clone, Copy)]
pub(crate) struct View<'a>(&'a BTreeMap<&'static str, Setting>);

impl<'a> View<'a> {
    pub(crate) fn new(settings: &'a BTreeMap<&'static str, Setting>) -> Self {
        Self(settings)
    }

    /// The value with `auto` worked out, and what no schedule reads set to what it would be by default.
    pub(crate) fn resolved(self, name: &str) -> Option<Setting> {
        let written = self.0.get(name)?;
        match name {
            "train.lr_end" if *written == Setting::Auto || !self.uses(name) => {
                // Without the last digit, so that a tenth of 3e-4 is what a user would write.
                Some(Setting::Float(significant(self.0.get("train.lr")?.as_float()? / 10.0, 15)))
            }
            "train.n_restart_cycles" if !self.uses(name) => Some(Setting::Int(1)),
            "sae.jumprelu_tanh_scale" if !self.uses(name) => Some(Setting::Float(4.0)),
            "sae.target_l0" if !self.uses(name) => Some(Setting::Float(0.0)),
            "train.seed" if !self.uses(name) => Some(Setting::Int(42)),
            "sae.decoder_init_norm" if !self.uses(name) => Some(Setting::Float(0.1)),
            "sae.jumprelu_init_threshold" if !self.uses(name) => Some(Setting::Float(0.01)),
            "store.tokens" if *written == Setting::Auto => self.0.get("train.tokens").cloned(),
            _ => Some(written.clone()),
        }
    }

    /// Whether a trial with these settings reads this one.
    pub(crate) fn uses(self, name: &str) -> bool {
        let is_one_of =
            |setting: &str, words: &[&str]| self.text(setting).is_some_and(|word| words.contains(&word));
        match keys::find(name).map(|key| key.used) {
            Some(Used::Sources(names)) => is_one_of("activations.source", names),
            Some(Used::Architectures(names)) => is_one_of("sae.architecture", names),
            Some(Used::Modes(names)) => self.uses(MODE) && is_one_of(MODE, names),
            Some(Used::Schedulers(names)) => is_one_of("train.lr_scheduler_name", names),
            Some(Used::Starts(names)) => is_one_of("sae.init_from", names),
            Some(Used::DrawnJumpRelus) => self.uses(MODE) && is_one_of("sae.init_from", &[""]),
            Some(Used::With(other)) => self.uses(other) && self.int(other).is_some_and(|n| n > 0),
            Some(Used::Always) | None => true,
        }
    }

    pub(crate) fn steps(self) -> Option<i64> {
        let (tokens, batch_size) = (self.int("train.tokens")?, self.int("train.batch_size")?);
        Some(tokens / batch_size + i64::from(tokens % batch_size != 0))
    }

    pub(crate) fn schedule_steps(self) -> Option<i64> {
        Some(self.int("train.tokens")? / self.int("train.batch_size")?)
    }

    fn int(self, name: &str) -> Option<i64> {
        self.resolved(name)?.as_int()
    }

    fn float(self, name: &str) -> Option<f64> {
        self.resolved(name)?.as_float()
    }

    fn text(self, name: &str) -> Option<&'a str> {
        self.0.get(name)?.as_text()
    }
}

/// Settings that cannot be together.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Contradiction {
    /// Those involved; the first that the user wrote is where the problem is reported.
    pub(crate) keys: &'static [&'static str],
    pub(crate) found: String,
    pub(crate) expected: String,
    pub(crate) hint: Option<String>,
}

/// What may find one.
type Check = fn(View<'_>) -> Option<Contradiction>;

/// Everything that is wrong with a trial's settings together. What is missing is not judged.
pub(crate) fn contradictions(view: View<'_>) -> Vec<Contradiction> {
    let checks: [Check; 15] = [
        tokens_fill_a_batch,
        store_fills_a_batch,
        held_out_fills_a_sequence,
        schedule_fits,
        restarts_fit,
        l1_warm_up_fits,
        l0_warm_up_fits,
        target_l0_fits,
        k_fits,
        widths_fit,
        normalisation_fits,
        cosine_end_allows_decay,
        start_fits_whitening,
        features_can_be_that_active,
        special_tokens_exist,
    ];
    checks.iter().chain(options::CHECKS).filter_map(|check| check(view)).collect()
}

fn contradiction(keys: &'static [&'static str], found: String, expected: impl Into<String>) -> Contradiction {
    Contradiction { keys, found, expected: expected.into(), hint: None }
}

fn tokens_fill_a_batch(view: View<'_>) -> Option<Contradiction> {
    let (tokens, batch_size) = (view.int("train.tokens")?, view.int("train.batch_size")?);
    (tokens < batch_size).then(|| {
        contradiction(
            &["train.tokens", "train.batch_size"],
            format!("train.tokens = {tokens} with train.batch_size = {batch_size}"),
            "tokens for at least one batch",
        )
    })
}

fn store_fills_a_batch(view: View<'_>) -> Option<Contradiction> {
    let (rows, batch_size) = (view.int("store.tokens")?, view.int("train.batch_size")?);
    // Rows that belong to no sequence are sequences of one.
    let context_size = if view.uses("data.context_size") { view.int("data.context_size")? } else { 1 };
    // When the store only follows train.tokens, that contradiction is told already.
    if rows < batch_size && view.int("train.tokens").is_some_and(|tokens| tokens >= batch_size) {
        return Some(contradiction(
            &["store.tokens", "train.batch_size"],
            format!("store.tokens = {rows} with train.batch_size = {batch_size}"),
            "a store of at least one batch",
        ));
    }
    (rows < context_size).then(|| {
        contradiction(
            &["store.tokens", "train.tokens", "data.context_size"],
            format!("store.tokens = {rows} with data.context_size = {context_size}"),
            "a store of at least one sequence",
        )
    })
}

fn held_out_fills_a_sequence(view: View<'_>) -> Option<Contradiction> {
    if !view.uses("data.eval_max_tokens") {
        return None;
    }
    let (kept, context_size) = (view.int("data.eval_max_tokens")?, view.int("data.context_size")?);
    (kept < context_size).then(|| {
        contradiction(
            &["data.eval_max_tokens", "data.context_size"],
            format!("data.eval_max_tokens = {kept} with data.context_size = {context_size}"),
            "held-out tokens for at least one sequence",
        )
    })
}

fn schedule_fits(view: View<'_>) -> Option<Contradiction> {
    let steps = view.schedule_steps().filter(|steps| *steps > 0)?;
    let (warm_up, decay) = (view.int("train.lr_warm_up_steps")?, view.int("train.lr_decay_steps")?);
    let cosine = view.text("train.lr_scheduler_name").is_some_and(|name| name != "constant");
    let between = i64::from(cosine);
    if warm_up.saturating_add(decay).saturating_add(between) <= steps {
        return None;
    }
    let expected = if cosine {
        format!(
            "together fewer than the {steps} steps of the run (train.tokens // train.batch_size): a cosine needs a step between"
        )
    } else {
        format!("together at most the {steps} steps of the run (train.tokens // train.batch_size)")
    };
    Some(Contradiction {
        hint: Some(
            "let them follow the length: [derive] train.lr_decay_steps = \"train.steps // 5\"".to_owned(),
        ),
        ..contradiction(
            &["train.lr_decay_steps", "train.lr_warm_up_steps", "train.tokens", "train.batch_size"],
            format!("train.lr_warm_up_steps = {warm_up} and train.lr_decay_steps = {decay}"),
            expected,
        )
    })
}

fn restarts_fit(view: View<'_>) -> Option<Contradiction> {
    if !view.uses("train.n_restart_cycles") {
        return None;
    }
    let between =
        view.schedule_steps()? - view.int("train.lr_warm_up_steps")? - view.int("train.lr_decay_steps")?;
    let cycles = view.int("train.n_restart_cycles")?;
    (between > 0 && cycles > between).then(|| {
        contradiction(
            &["train.n_restart_cycles", "train.tokens"],
            format!("train.n_restart_cycles = {cycles}"),
            format!("at most one cycle for each of the {between} steps between warm-up and decay"),
        )
    })
}

fn l1_warm_up_fits(view: View<'_>) -> Option<Contradiction> {
    sparsity_warm_up_fits(view, &["sae.l1_warm_up_steps", "train.tokens", "train.batch_size"])
}

fn l0_warm_up_fits(view: View<'_>) -> Option<Contradiction> {
    sparsity_warm_up_fits(view, &["sae.l0_warm_up_steps", "train.tokens", "train.batch_size"])
}

fn sparsity_warm_up_fits(view: View<'_>, keys: &'static [&'static str; 3]) -> Option<Contradiction> {
    let name = keys[0];
    if !view.uses(name) {
        return None;
    }
    let (warm_up, steps) = (view.int(name)?, view.steps()?);
    (warm_up > steps).then(|| Contradiction {
        hint: Some(format!("let it follow the length: [derive] {name} = \"train.steps // 20\"")),
        ..contradiction(
            keys,
            format!("{name} = {warm_up}"),
            format!("at most the {steps} steps of the run (train.tokens / train.batch_size)"),
        )
    })
}

fn target_l0_fits(view: View<'_>) -> Option<Contradiction> {
    if !view.uses("sae.target_l0") {
        return None;
    }
    let (target, d_sae) = (view.float("sae.target_l0")?, view.int("sae.d_sae")?);
    (target <= 0.0 || target > d_sae as f64).then(|| {
        contradiction(
            &["sae.target_l0", MODE, "sae.d_sae"],
            format!("sae.target_l0 = {target} with sae.d_sae = {d_sae}"),
            format!("for {MODE} = \"quadratic\", a target above 0 and at most d_sae"),
        )
    })
}

fn widths_fit(view: View<'_>) -> Option<Contradiction> {
    if !view.uses("sae.matryoshka_widths") {
        return None;
    }
    let (written, d_sae) = (view.resolved("sae.matryoshka_widths")?, view.int("sae.d_sae")?);
    let Setting::Sizes(widths) = &written else { return None };
    (widths.last() != Some(&d_sae) || !widths.is_sorted_by(|a, b| a < b)).then(|| Contradiction {
        hint: (widths.len() > 1 && widths.last().is_some_and(|last| *last < d_sae))
            .then(|| format!("the last level is the whole SAE: add {d_sae}")),
        ..contradiction(
            &["sae.matryoshka_widths", "sae.d_sae", "sae.architecture"],
            format!("sae.matryoshka_widths = {} with sae.d_sae = {d_sae}", written.to_toml()),
            "widths that rise, each above the one before, and end at d_sae",
        )
    })
}

fn k_fits(view: View<'_>) -> Option<Contradiction> {
    if !view.uses("sae.k") {
        return None;
    }
    let (k, d_sae) = (view.resolved("sae.k")?, view.int("sae.d_sae")?);
    let architecture = view.text("sae.architecture")?;
    if k.as_int().is_none() && !matches!(architecture, "batchtopk" | "matryoshka_batchtopk") {
        return Some(contradiction(
            &["sae.k", "sae.architecture"],
            format!("sae.k = {} with sae.architecture = \"{architecture}\"", k.to_toml()),
            "a whole k; only batchtopk and its kin keep k on average",
        ));
    }
    let above = k.as_int().map_or_else(|| k.as_float().is_some_and(|k| k > d_sae as f64), |k| k > d_sae);
    above.then(|| {
        contradiction(
            &["sae.k", "sae.d_sae"],
            format!("sae.k = {} with sae.d_sae = {d_sae}", k.to_toml()),
            "k at most d_sae",
        )
    })
}

fn normalisation_fits(view: View<'_>) -> Option<Contradiction> {
    let (architecture, mode) = (view.text("sae.architecture")?, view.text("sae.normalize_activations")?);
    let what = match architecture {
        "topk" | "batchtopk" | "matryoshka_batchtopk" | "abstopk" => "auxiliary loss on dead latents",
        "gated" => "reconstruction by gates",
        _ => return None,
    };
    matches!(mode, "layer_norm" | "constant_norm_rescale").then(|| Contradiction {
        hint: Some(format!(
            "{architecture}'s {what} is not defined for modes that scale every row on its own"
        )),
        ..contradiction(
            &["sae.normalize_activations", "sae.architecture"],
            format!("sae.normalize_activations = \"{mode}\" with sae.architecture = \"{architecture}\""),
            format!(
                "for {architecture}, one of \"none\", \"expected_average_only_in\", \"covariance_whitening\""
            ),
        )
    })
}

fn cosine_end_allows_decay(view: View<'_>) -> Option<Contradiction> {
    if !view.uses("train.lr_end") {
        return None;
    }
    let (lr_end, decay) = (view.float("train.lr_end")?, view.int("train.lr_decay_steps")?);
    (lr_end == 0.0 && decay > 0).then(|| {
        contradiction(
            &["train.lr_end", "train.lr_decay_steps"],
            format!("train.lr_end = 0 with train.lr_decay_steps = {decay}"),
            "a rate above 0 to decay from, or no decay after a cosine that ends at 0",
        )
    })
}

fn features_can_be_that_active(view: View<'_>) -> Option<Contradiction> {
    if !view.uses("activations.mean_active") {
        return None;
    }
    let (n_features, mean_active) =
        (view.int("activations.n_features")?, view.float("activations.mean_active")?);
    let power = view.float("activations.probability_power")?;
    // The most frequent feature has weight 1.
    let most = (1..=n_features).map(|i| (i as f64).powf(-power)).sum::<f64>();
    (mean_active > most).then(|| {
        contradiction(
            &["activations.mean_active", "activations.probability_power", "activations.n_features"],
            format!(
                "activations.mean_active = {} with activations.n_features = {n_features} and activations.probability_power = {}",
                float_text(mean_active),
                float_text(power)
            ),
            format!("at most {}, so that no feature has a probability above 1", float_text(significant(most, 4))),
        )
    })
}

fn special_tokens_exist(view: View<'_>) -> Option<Contradiction> {
    let source = view.text("activations.source")?;
    let excludes = view.resolved("eval.exclude_special_tokens") == Some(Setting::Bool(true));
    (excludes && source != "model").then(|| {
        contradiction(
            &["eval.exclude_special_tokens", "activations.source"],
            format!("eval.exclude_special_tokens = true with activations.source = \"{source}\""),
            "activations.source = \"model\": rows from elsewhere have no tokens",
        )
    })
}

fn start_fits_whitening(view: View<'_>) -> Option<Contradiction> {
    let is_started = view.text("sae.init_from").is_some_and(|path| !path.is_empty());
    let is_whitened = view.text("sae.normalize_activations")? == "covariance_whitening";
    let rescales = view.uses("sae.rescale_acts_by_decoder_norm")
        && *view.0.get("sae.rescale_acts_by_decoder_norm")? == Setting::Bool(true);
    (is_started && is_whitened && rescales).then(|| Contradiction {
        hint: Some(
            "whitening changes the norms of decoder rows, so other latents would be the k largest than in the SAE to start from"
                .to_owned(),
        ),
        ..contradiction(
            &["sae.init_from", "sae.normalize_activations", "sae.rescale_acts_by_decoder_norm"],
            "sae.init_from and sae.normalize_activations = \"covariance_whitening\" with sae.rescale_acts_by_decoder_norm = true"
                .to_owned(),
            "sae.rescale_acts_by_decoder_norm = false, or another normalisation",
        )
    })
}
