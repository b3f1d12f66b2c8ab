//! "Did you mean": the nearest known word, and what other tools call our settings.

use super::keys::{KEYS, SECTIONS, VARIATION};

/// Names that users bring along, and ours. Last segments only; the section may be any.
const OTHER_NAMES: &[(&str, &str)] = &[
    ("train_batch_size_tokens", "train.batch_size"),
    ("training_tokens", "train.tokens"),
    ("total_training_samples", "train.tokens"),
    ("n_tokens", "train.tokens"),
    ("learning_rate", "train.lr"),
    ("lr_scheduler", "train.lr_scheduler_name"),
    ("warmup_steps", "train.lr_warm_up_steps"),
    ("lr_warmup_steps", "train.lr_warm_up_steps"),
    ("decay_steps", "train.lr_decay_steps"),
    ("model_name", "model.name"),
    ("hook_name", "model.hook"),
    ("hook_point", "model.hook"),
    ("hook_name_out", "model.hook_out"),
    ("dataset_path", "data.dataset"),
    ("dataset_name", "data.dataset"),
    ("path", "data.dataset"),
    ("ctx_len", "data.context_size"),
    ("context_length", "data.context_size"),
    ("seq_len", "data.context_size"),
    ("dict_size", "sae.d_sae"),
    ("d_hidden", "sae.d_sae"),
    ("n_latents", "sae.d_sae"),
    ("sparsity_coefficient", "sae.l1_coefficient"),
    ("l1", "sae.l1_coefficient"),
    ("lambda", "sae.l1_coefficient"),
    ("arch", "sae.architecture"),
    ("random_seed", "train.seed"),
    ("n_trials", "sweep.trials"),
    ("num_trials", "sweep.trials"),
    ("run_cap", "sweep.trials"),
    ("method", "sweep.strategy"),
    ("metric", "sweep.objective.metric"),
    ("goal", "sweep.objective.goal"),
    ("device", "devices.use"),
];

/// Settings of SAELens without one of ours, and what to do instead.
const EXPLAINED: &[(&str, &str)] = &[
    ("expansion_factor", "set the number of latents itself, `sae.d_sae`"),
    ("d_in", "the activation width is the model's own at `model.hook`"),
    ("n_batches_in_buffer", "the shuffle is `store.shuffle_buffer_rows`"),
    ("dead_feature_threshold", "a latent is dead by `train.dead_feature_window` alone"),
    ("is_dataset_tokenized", "found out from the data's columns"),
    ("streaming", "data is read from local files; the hub's are downloaded first"),
    ("checkpoint_path", "every trial has its own folder in the run folder"),
    ("n_checkpoints", "see `run.checkpoint_every_minutes` and `run.checkpoint_every_steps`"),
    ("log_to_wandb", "metrics are written to files in the run folder"),
    ("hook_layer", "the layer is part of `model.hook`, for example \"blocks.3.hook_resid_post\""),
];

/// Words of other tools for words of ours.
const OTHER_WORDS: &[(&str, &str)] = &[
    ("fp16", "float16"),
    ("half", "float16"),
    ("f16", "float16"),
    ("bf16", "bfloat16"),
    ("fp32", "float32"),
    ("f32", "float32"),
    ("gpu", "cuda"),
    ("mps", "metal"),
    ("relu", "standard"),
    ("vanilla", "standard"),
    ("layernorm", "layer_norm"),
    ("whiten", "covariance_whitening"),
    ("min", "minimize"),
    ("max", "maximize"),
    ("bayes", "random"),
];

/// How alike two words are, from 0 to 1.
fn likeness(word: &str, candidate: &str) -> f64 {
    let edits = strsim::normalized_damerau_levenshtein(word, candidate);
    let is_part = word.len() >= 3 && (candidate.starts_with(word) || candidate.contains(&format!("_{word}")));
    let holds = candidate.len() >= 4 && word.starts_with(candidate);
    if is_part || holds { edits.max(0.7) } else { edits }
}

/// The candidate that is nearest to the word, if any is near enough to be meant.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let mut best: Option<(f64, &str)> = None;
    for candidate in candidates {
        let likeness = likeness(&word, candidate);
        if likeness >= 0.6 && best.is_none_or(|(best, _)| likeness > best) {
            best = Some((likeness, candidate));
        }
    }
    best.map(|(_, candidate)| candidate)
}

/// A "did you mean" for a word out of a list.
pub(crate) fn word<'a>(found: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let candidates: Vec<&str> = candidates.into_iter().collect();
    let lower = found.to_lowercase();
    let known = OTHER_WORDS.iter().find(|(other, ours)| *other == lower && candidates.contains(ours));
    let meant = known.map(|(_, ours)| *ours).or_else(|| nearest(found, candidates))?;
    Some(format!("did you mean \"{meant}\"?"))
}

/// A "did you mean" for a dotted name that is no setting.
pub(crate) fn setting(found: &str) -> Option<String> {
    let last = found.rsplit('.').next().unwrap_or(found);
    let mean = |name: &str| Some(format!("did you mean `{name}`?"));
    if let Some(key) = KEYS.iter().find(|key| key.name.rsplit('.').next() == Some(last)) {
        return mean(key.name);
    }
    let lower = last.to_lowercase();
    if let Some((_, ours)) = OTHER_NAMES.iter().find(|(other, _)| *other == lower) {
        return mean(ours);
    }
    if let Some((_, advice)) = EXPLAINED.iter().find(|(other, _)| *other == lower) {
        return Some((*advice).to_owned());
    }
    let section = found.split('.').next().unwrap_or(found);
    let lasts = || KEYS.iter().map(|key| key.name.rsplit('.').next().unwrap_or(key.name));
    // The section counts for less than the name: a setting is more often put into the wrong section.
    let of_section =
        KEYS.iter().zip(lasts()).filter(|(key, _)| key.section() == section).map(|(_, last)| last);
    let best = nearest(last, of_section).map(|best| (best, true));
    let (best, same_section) = best.or_else(|| nearest(last, lasts()).map(|best| (best, false)))?;
    KEYS.iter()
        .zip(lasts())
        .find(|(key, last)| *last == best && (!same_section || key.section() == section))
        .and_then(|(key, _)| mean(key.name))
}

/// A "did you mean" for a section.
pub(crate) fn section(found: &str) -> Option<String> {
    if let Some(name) = nearest(found, SECTIONS.iter().chain(VARIATION).copied()) {
        return Some(format!("did you mean [{name}]?"));
    }
    setting(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_found_by_slip_section_and_foreign_name() {
        let check = |found: &str, expected: &str| {
            assert_eq!(setting(found).unwrap_or_default(), format!("did you mean `{expected}`?"), "{found}");
        };
        check("sae.d_sea", "sae.d_sae");
        check("train.l1_coefficient", "sae.l1_coefficient");
        check("train.learning_rate", "train.lr");
        check("sae.l1_coef", "sae.l1_coefficient");
        check("train.warm_up_steps", "train.lr_warm_up_steps");
        check("data.contextsize", "data.context_size");
        assert_eq!(setting("sae.zzzzzzzz"), None);
    }

    #[test]
    fn every_suggestion_exists() {
        for (_, ours) in OTHER_NAMES {
            assert!(super::super::keys::find(ours).is_some(), "{ours}");
        }
    }
}
