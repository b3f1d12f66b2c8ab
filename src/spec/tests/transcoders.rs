//! Sweeps with an output hook.

use super::*;

const LATER: &str = "model.hook_out=blocks.0.hook_resid_post";

#[test]
fn an_output_hook_makes_another_trial_and_its_absence_none() {
    let sae = plan(MINIMAL);
    let with = |overrides: &[&str]| with_overrides("", overrides).unwrap_or_else(|errors| panic!("{errors}"));
    // Configurations from before there was the setting have their ids still.
    assert_eq!(ids(&with(&["model.hook_out="])), ids(&sae));
    assert!(!canonical(&sae.trials[0].config).contains("hook_out"));
    assert_eq!(ids(&with(&["sae.apply_b_dec_to_input=true"])), ids(&sae), "the default, written");

    let transcoder = with(&[LATER]);
    assert_ne!(ids(&transcoder), ids(&sae));
    let config = &transcoder.trials[0].config;
    assert!(config.source.is_of_two_hooks() && !config.sae.apply_b_dec_to_input);
    assert_eq!(ids(&with(&[LATER, "sae.apply_b_dec_to_input=false"])), ids(&transcoder));
    let text = toml::to_string(config).unwrap();
    assert_eq!(&toml::from_str::<crate::trial::TrialConfig>(&text).unwrap(), config, "{text}");
    let snippet = format!("[sweep]\nname = \"again\"\n{}", trial_toml_snippet(config));
    assert_eq!(ids(&plan(&snippet)), ids(&transcoder));
}

#[test]
fn saes_and_transcoders_may_be_in_one_sweep() {
    let axes = "[axes]\nmodel.hook_out = [\"\", \"blocks.0.hook_resid_post\"]\n";
    let mixed = plan(&format!("{MINIMAL}{axes}"));
    let subtract: Vec<bool> =
        mixed.trials.iter().map(|trial| trial.config.sae.apply_b_dec_to_input).collect();
    assert_eq!(subtract, [true, false]);
    assert!(
        mixed.notes.iter().any(|note| note.contains("2 activation stores: they differ in model.hook_out")),
        "{:?}",
        mixed.notes
    );
    // Expressions see what auto comes to.
    let derive = "[derive]\nsae.k = \"8 if sae.apply_b_dec_to_input else 4\"\n";
    let derived = plan(
        &format!("{MINIMAL}{derive}{axes}").replace("d_sae = 512", "d_sae = 512\narchitecture = \"topk\""),
    );
    let k = |nth: usize| flat(&derived.trials[nth].config)["sae.k"].clone();
    assert_eq!((k(0), k(1)), (json!(8), json!(4)));
}
