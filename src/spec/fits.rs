//! What of `[sae]` goes together: how many latents are kept, of how many, and how activations are scaled for them.
//!
//! [`contradictions_in`] judges a configuration that comes from elsewhere than a sweep file, by the same checks.

use super::{
    DEFAULTS_TOML,
    check::{Contradiction, View, contradiction, contradictions},
    identity::flat,
    keys::{self, MODE},
    setting::{Setting, coerce},
};
use crate::trial::TrialConfig;
use std::collections::BTreeMap;

/// What cannot be in a configuration, one line each: settings out of their range, and settings that are wrong together.
/// Empty for every trial of a plan.
pub fn contradictions_in(config: &TrialConfig) -> Vec<String> {
    let (mut settings, mut told) = (BTreeMap::new(), Vec::new());
    let given = flat(config);
    // What is off, or belongs to other architectures, is not in a configuration; checks look for it all the same.
    let defaults: toml::Table = DEFAULTS_TOML.parse().expect("invariant: the defaults are TOML");
    for key in keys::trial_keys() {
        let (section, own_name) = key.name.split_once('.').expect("invariant: settings have sections");
        let default = || defaults.get(section).and_then(|section| section.get(own_name));
        let value = match given.get(key.name) {
            Some(value) => figment::value::Value::serialize(value),
            None => match default() {
                Some(value) => figment::value::Value::serialize(value),
                None => continue,
            },
        };
        let (name, value) = (key.name, value.expect("invariant: settings are plain data"));
        match coerce(key, &value) {
            Ok(setting) => drop(settings.insert(key.name, setting)),
            Err(mismatch) => {
                told.push(format!("{name} is {}, expected {}", mismatch.found, mismatch.expected))
            }
        }
    }
    told.extend(contradictions(View::new(&settings)).into_iter().map(
        |Contradiction { found, expected, hint, .. }| {
            let hint = hint.map_or_else(String::new, |hint| format!(" ({hint})"));
            format!("{found}, expected {expected}{hint}")
        },
    ));
    told
}

pub(super) fn target_l0_fits(view: View<'_>) -> Option<Contradiction> {
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

pub(super) fn widths_fit(view: View<'_>) -> Option<Contradiction> {
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

pub(super) fn k_fits(view: View<'_>) -> Option<Contradiction> {
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

pub(super) fn normalisation_fits(view: View<'_>) -> Option<Contradiction> {
    let (architecture, mode) = (view.text("sae.architecture")?, view.text("sae.normalize_activations")?);
    let of_row = ["constant_norm_rescale", "layer_norm"].as_slice();
    let (unusable, why) = match architecture {
        // SAELens finds out when the first latent is dead.
        "topk" | "batchtopk" | "abstopk" if view.float("sae.aux_loss_coefficient")? != 0.0 => (
            of_row,
            "auxiliary loss on dead latents is not defined for modes that scale every row on its own; with \
             sae.aux_loss_coefficient = 0 there is none",
        ),
        // Every level's error is measured on the input as it came to the SAE.
        "matryoshka_batchtopk" => {
            (of_row, "losses of inner levels are not defined for modes that scale every row on its own")
        }
        "gated" => {
            (of_row, "reconstruction by gates is not defined for modes that scale every row on its own")
        }
        "matching_pursuit" => (
            ["covariance_whitening"].as_slice(),
            "encoder is the decoder's transpose, which whitening cannot be folded into",
        ),
        _ => return None,
    };
    let all =
        ["none", "expected_average_only_in", "constant_norm_rescale", "layer_norm", "covariance_whitening"];
    let usable: Vec<&str> = all.into_iter().filter(|mode| !unusable.contains(mode)).collect();
    unusable.contains(&mode).then(|| Contradiction {
        hint: Some(format!("{architecture}'s {why}")),
        ..contradiction(
            &["sae.normalize_activations", "sae.architecture"],
            format!("sae.normalize_activations = \"{mode}\" with sae.architecture = \"{architecture}\""),
            format!("for {architecture}, one of {}", keys::listed(&usable)),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{architectures, of_architecture, texts, with_overrides};
    use super::*;
    use crate::trial::{Architecture, NormalizeActivations};

    #[test]
    fn what_a_plan_holds_is_never_contradictory() {
        for name in architectures() {
            let plan = with_overrides("", &texts(&of_architecture(name))).unwrap();
            assert_eq!(contradictions_in(&plan.trials[0].config), Vec::<String>::new());
        }
    }

    #[test]
    fn what_no_step_could_honour_is_told() {
        let mut config = with_overrides("", &["sae.architecture=topk"]).unwrap().trials[0].config.clone();
        config.sae.normalize_activations = NormalizeActivations::LayerNorm;
        let Architecture::TopK { k, .. } = &mut config.sae.architecture else { panic!() };
        *k = 513;
        let told = contradictions_in(&config);
        assert_eq!(told.len(), 2, "{told:?}");
        assert_eq!(told[0], "sae.k = 513 with sae.d_sae = 512, expected k at most d_sae");
        assert!(told[1].contains("layer_norm"), "{told:?}");
        let Architecture::TopK { k, aux_loss_coefficient, .. } = &mut config.sae.architecture else {
            panic!()
        };
        (*k, *aux_loss_coefficient) = (0, 0.0);
        let told = contradictions_in(&config);
        assert_eq!(told.len(), 1, "without an auxiliary loss, rows may be scaled: {told:?}");
        assert!(told[0].starts_with("sae.k is 0, expected a whole number"), "{told:?}");
    }
}
