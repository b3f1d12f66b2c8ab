//! Options beyond SAELens that do not go together with the rest of a trial.

use super::{Check, Contradiction, View, contradiction};

/// What is checked.
pub(super) const CHECKS: &[Check] =
    &[resampling_happens, resampling_ends_in_time, annealing_ends, k_falls, norms_are_kept];

fn resampling_happens(view: View<'_>) -> Option<Contradiction> {
    let (every, steps) = (above_zero(view, "train.resample_every_steps")?, view.steps()?);
    (every > steps).then(|| Contradiction {
        hint: Some(
            "let it follow the length: [derive] train.resample_every_steps = \"train.steps // 8\"".to_owned(),
        ),
        ..contradiction(
            &["train.resample_every_steps", "train.tokens", "train.batch_size"],
            format!("train.resample_every_steps = {every}"),
            format!("at most the {steps} steps of the run (train.tokens / train.batch_size)"),
        )
    })
}

fn resampling_ends_in_time(view: View<'_>) -> Option<Contradiction> {
    let every = above_zero(view, "train.resample_every_steps")?;
    let until = above_zero(view, "train.resample_until_step")?;
    (until < every).then(|| {
        contradiction(
            &["train.resample_until_step", "train.resample_every_steps"],
            format!("train.resample_until_step = {until} with train.resample_every_steps = {every}"),
            "0, or a step after which latents are resampled at least once",
        )
    })
}

fn annealing_ends(view: View<'_>) -> Option<Contradiction> {
    let (over, steps) = (above_zero(view, "train.k_anneal_steps")?, view.steps()?);
    (over > steps).then(|| Contradiction {
        hint: Some(
            "let it follow the length: [derive] train.k_anneal_steps = \"train.steps // 10\"".to_owned(),
        ),
        ..contradiction(
            &["train.k_anneal_steps", "train.tokens", "train.batch_size"],
            format!("train.k_anneal_steps = {over}"),
            format!("at most the {steps} steps of the run (train.tokens / train.batch_size)"),
        )
    })
}

fn k_falls(view: View<'_>) -> Option<Contradiction> {
    let start = above_zero(view, "train.k_start")?;
    let (k, d_sae) = (view.resolved("sae.k")?, view.int("sae.d_sae")?);
    let is_below = k.as_int().map_or_else(|| k.as_float().is_some_and(|k| (start as f64) < k), |k| start < k);
    (is_below || start > d_sae).then(|| {
        contradiction(
            &["train.k_start", "sae.k", "sae.d_sae"],
            format!("train.k_start = {start} with sae.k = {} and sae.d_sae = {d_sae}", k.to_toml()),
            "0, or a number from sae.k to sae.d_sae",
        )
    })
}

fn norms_are_kept(view: View<'_>) -> Option<Contradiction> {
    let multiple = view.float("train.max_norm_multiple")?;
    (multiple > 0.0 && multiple < 1.0).then(|| {
        contradiction(
            &["train.max_norm_multiple"],
            format!("train.max_norm_multiple = {multiple}"),
            "0, which keeps all activations, or a multiple of at least 1: below that it would leave out more than half",
        )
    })
}

/// A setting that the trial uses, at more than 0.
fn above_zero(view: View<'_>, name: &str) -> Option<i64> {
    view.int(name).filter(|value| *value > 0 && view.uses(name))
}
