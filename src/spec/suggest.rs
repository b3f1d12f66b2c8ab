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

/// The candidate that is nearest to the word, if any is near enough to be meant.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&word, candidate), candidate))
        .filter(|(distance, candidate)| {
            *distance <= (candidate.len().max(word.len()) / 3).max(1) || candidate.starts_with(&word)
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// A "did you mean" for a word out of a list.
pub(crate) fn word<'a>(found: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<String> {
    nearest(found, candidates).map(|candidate| format!("did you mean \"{candidate}\"?"))
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
    let of_section: Vec<&str> =
        KEYS.iter().filter(|key| key.section() == section).map(|key| key.name).collect();
    if let Some(name) = nearest(found, of_section.iter().copied()) {
        return mean(name);
    }
    let by_last =
        KEYS.iter().map(|key| (key.name, key.name.split_once('.').map_or(key.name, |(_, rest)| rest)));
    let lasts: Vec<(&str, &str)> = by_last.collect();
    let best = nearest(last, lasts.iter().map(|(_, rest)| *rest))?;
    lasts.iter().find(|(_, rest)| *rest == best).and_then(|(name, _)| mean(name))
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
