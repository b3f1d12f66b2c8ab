//! Settings that do not go with an output hook of its own, `model.hook_out`.

use super::{
    check::{Contradiction, View, contradiction},
    setting::Setting,
};

/// All of them.
pub(super) const CHECKS: &[fn(View<'_>) -> Option<Contradiction>] = &[
    architecture_fits,
    bias_fits,
    normalisation_fits,
    start_fits,
    resampling_fits,
    filter_fits,
    centre_fits,
    hooks_differ,
];

fn architecture_fits(view: View<'_>) -> Option<Contradiction> {
    let architecture = view.text("sae.architecture")?;
    let fits = matches!(architecture, "standard" | "topk" | "jumprelu");
    (view.is_of_transcoder() && !fits).then(|| Contradiction {
        hint: Some("without model.hook_out it is an SAE at model.hook".to_owned()),
        ..contradiction(
            &["model.hook_out", "sae.architecture"],
            format!("model.hook_out with sae.architecture = \"{architecture}\""),
            "for a transcoder, one of \"standard\", \"topk\", \"jumprelu\"",
        )
    })
}

fn bias_fits(view: View<'_>) -> Option<Contradiction> {
    let subtracts = view.resolved("sae.apply_b_dec_to_input")? == Setting::Bool(true);
    (view.is_of_transcoder() && subtracts).then(|| Contradiction {
        hint: Some("b_dec lies in the output's space; leave the setting out".to_owned()),
        ..contradiction(
            &["sae.apply_b_dec_to_input", "model.hook_out"],
            "sae.apply_b_dec_to_input = true with model.hook_out".to_owned(),
            "false: a transcoder's input is not of the space of b_dec",
        )
    })
}

fn normalisation_fits(view: View<'_>) -> Option<Contradiction> {
    let mode = view.text("sae.normalize_activations")?;
    (view.is_of_transcoder() && !matches!(mode, "none" | "expected_average_only_in")).then(|| {
        contradiction(
            &["sae.normalize_activations", "model.hook_out"],
            format!("sae.normalize_activations = \"{mode}\" with model.hook_out"),
            "for a transcoder, \"none\" or \"expected_average_only_in\"",
        )
    })
}

fn start_fits(view: View<'_>) -> Option<Contradiction> {
    let is_started = view.text("sae.init_from").is_some_and(|path| !path.is_empty());
    (view.is_of_transcoder() && is_started).then(|| {
        contradiction(
            &["sae.init_from", "model.hook_out"],
            "sae.init_from with model.hook_out".to_owned(),
            "a transcoder whose weights are drawn at the start",
        )
    })
}

/// Resampling gives a latent's decoder the direction of an input.
fn resampling_fits(view: View<'_>) -> Option<Contradiction> {
    option_fits(view, &["train.resample_every_steps", "model.hook_out"], Setting::Int(0))
}

/// The filter takes rows for inputs.
fn filter_fits(view: View<'_>) -> Option<Contradiction> {
    option_fits(view, &["train.max_norm_multiple", "model.hook_out"], Setting::Float(0.0))
}

/// The middle of inputs is none of outputs.
fn centre_fits(view: View<'_>) -> Option<Contradiction> {
    option_fits(view, &["train.b_dec_init_method", "model.hook_out"], Setting::Text("zeros".to_owned()))
}

/// An option that takes an input for a target, the first of `keys`, is `off` in a transcoder.
fn option_fits(view: View<'_>, keys: &'static [&'static str], off: Setting) -> Option<Contradiction> {
    let value = view.resolved(keys[0])?;
    (view.is_of_transcoder() && value != off).then(|| {
        contradiction(
            keys,
            format!("{} = {} with model.hook_out", keys[0], value.to_toml()),
            format!("for a transcoder, {}: it takes inputs for outputs", off.to_toml()),
        )
    })
}

fn hooks_differ(view: View<'_>) -> Option<Contradiction> {
    let (hook, hook_out) = (view.text("model.hook")?, view.text("model.hook_out")?);
    (view.is_of_transcoder() && hook == hook_out).then(|| Contradiction {
        hint: Some("an SAE at model.hook has no model.hook_out".to_owned()),
        ..contradiction(
            &["model.hook_out", "model.hook"],
            format!("model.hook_out = \"{hook_out}\", which is model.hook"),
            "a hook that comes after model.hook in the forward pass",
        )
    })
}
