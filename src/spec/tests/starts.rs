//! Trials that start from an SAE that is there already.

use super::{
    super::{canonical, flat},
    plan, with, with_overrides,
};

#[test]
fn a_start_is_part_of_the_identity_and_its_absence_is_not() {
    let drawn = canonical(&with("").trials[0].config);
    assert!(!drawn.contains("init_from"), "{drawn}");
    let started = canonical(&with_overrides("", &["sae.init_from=saes/a"]).unwrap().trials[0].config);
    let mut expected: Vec<&str> = drawn.lines().collect();
    expected.push("sae.init_from=\"saes/a\"");
    let (header, settings) = expected.split_at_mut(1);
    settings.sort_unstable();
    assert_eq!(started.lines().next(), Some(header[0]));
    let mut found: Vec<&str> = started.lines().skip(1).collect();
    found.sort_unstable();
    assert_eq!(found, settings, "the settings of drawn weights have their defaults");
}

#[test]
fn settings_of_drawn_weights_have_no_effect_on_started_ones() {
    let refused = |more: &str, overrides: &[&str]| with_overrides(more, overrides).unwrap_err().to_string();
    for (setting, key) in
        [("train.seed=7", "train.seed"), ("sae.decoder_init_norm=1", "sae.decoder_init_norm")]
    {
        let message = refused("", &["sae.init_from=a", setting]);
        assert!(
            message.contains(key) && message.contains("no trial uses it: sae.init_from is \"a\""),
            "{message}"
        );
    }
    let jumprelu = "sae.architecture=jumprelu";
    let message = refused("", &[jumprelu, "sae.init_from=a", "sae.jumprelu_init_threshold=1"]);
    assert!(message.contains("no trial uses it: sae.init_from is \"a\""), "{message}");
    let message = refused("", &["sae.jumprelu_init_threshold=1"]);
    assert!(message.contains("no trial uses it: sae.architecture is \"standard\""), "{message}");
    let started = with_overrides("", &[jumprelu, "sae.init_from=a"]).unwrap();
    assert_eq!(flat(&started.trials[0].config)["sae.jumprelu_init_threshold"], 0.01);
    let message = refused("[axes]\nsae.init_from = [\"\", \"a\"]\ntrain.seed = [1, 2]\n", &[]);
    assert!(message.contains("sae.init_from = \"a\" does not use train.seed"), "{message}");
    let both = with("[axes]\nsae.init_from = [\"\", \"a\"]\n");
    assert_eq!(both.trials.len(), 2);
    assert_eq!(both.trials[1].varied["sae.init_from"], "a");
}

#[test]
fn whitening_cannot_keep_which_latents_are_the_largest() {
    let topk = "architecture = \"topk\"\nnormalize_activations = \"covariance_whitening\"\ninit_from = \"a\"";
    let settings: Vec<String> = topk.lines().map(|line| format!("sae.{}", line.replace(' ', ""))).collect();
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let message = with_overrides("", &settings).unwrap_err().to_string();
    assert!(message.contains("rescale_acts_by_decoder_norm = false"), "{message}");
    let fine: Vec<&str> = settings.into_iter().chain(["sae.rescale_acts_by_decoder_norm=false"]).collect();
    with_overrides("", &fine).unwrap();
}

#[test]
fn the_snippet_of_a_started_trial_is_a_sweep_again() {
    let started = with_overrides("", &["sae.init_from=saes/a"]).unwrap();
    let snippet = super::super::trial_toml_snippet(&started.trials[0].config);
    let again = plan(&format!("[sweep]\nname = \"again\"\n{snippet}"));
    assert_eq!(again.trials[0].id, started.trials[0].id);
}
