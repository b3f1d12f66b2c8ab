//! Settings that do not go with an output hook of its own, `model.hook_out`.

use super::{
    check::{Contradiction, View, contradiction},
    setting::Setting,
};

/// All of them.
pub(super) const CHECKS: &[fn(View<'_>) -> Option<Contradiction>] =
    &[architecture_fits, bias_fits, normalisation_fits, start_fits, options_fit, hooks_differ];

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

/// Options that take an input for a target, or rows for inputs alone.
fn options_fit(view: View<'_>) -> Option<Contradiction> {
    let on = [
        (&["train.resample_every_steps", "model.hook_out"], view.int("train.resample_every_steps")? > 0),
        (&["train.max_norm_multiple", "model.hook_out"], view.float("train.max_norm_multiple")? > 0.0),
        (&["train.b_dec_init_method", "model.hook_out"], view.text("train.b_dec_init_method")? != "zeros"),
    ];
    let (keys, _) = on.into_iter().find(|(_, is_on)| view.is_of_transcoder() && *is_on)?;
    Some(contradiction(
        keys,
        format!("{} with model.hook_out", keys[0]),
        "for a transcoder, neither resample_every_steps, max_norm_multiple nor b_dec_init_method",
    ))
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
