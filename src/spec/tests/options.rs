//! Options beyond SAELens: off, they are no part of an id; what does not go together is told.

use super::super::{Fault, SpecErrors, canonical, trial_toml_snippet};
use super::{MINIMAL, ids, plan, resolved_toml, values, with, with_overrides};
use crate::trial::{BDecInit, TrainOptions, TrialConfig};
use serde_json::json;

#[test]
fn their_defaults_are_off() {
    for architecture in ["standard", "topk", "batchtopk"] {
        let plan = with_overrides("", &[&format!("sae.architecture={architecture}")]).unwrap();
        assert_eq!(plan.trials[0].config.train.options, TrainOptions::default());
    }
}

#[test]
fn one_that_is_off_is_no_part_of_an_id() {
    let off = with_overrides(
        "",
        &[
            "train.resample_every_steps=0",
            "train.normalize_sae_decoder=false",
            "train.b_dec_init_method=zeros",
            "train.max_norm_multiple=0",
        ],
    )
    .unwrap();
    assert_eq!(ids(&off), ids(&with("")));
    assert!(!canonical(&off.trials[0].config).contains("resample"));
    let on = with_overrides("", &["train.resample_every_steps=50"]).unwrap();
    assert_ne!(ids(&on), ids(&off));
    let text = canonical(&on.trials[0].config);
    assert!(text.contains("\ntrain.resample_every_steps=50\n"), "{text}");
    // The default of what it brings along is left out, too.
    assert!(!text.contains("resample_until_step"), "{text}");
}

#[test]
fn a_configuration_from_before_there_were_any_is_the_same_trial() {
    let now = &with("").trials[0];
    let mut table = toml::Table::try_from(&now.config).unwrap();
    let train = table["train"].as_table_mut().unwrap();
    let options = toml::Table::try_from(TrainOptions::default()).unwrap();
    options.keys().for_each(|name| assert!(train.remove(name).is_some(), "{name}"));
    let before: TrialConfig = table.try_into().unwrap();
    assert_eq!(before, now.config);
}

#[test]
fn they_are_swept_like_any_setting() {
    let more = "[axes]\ntrain.resample_every_steps = [0, 50]\ntrain.b_dec_init_method = [\"zeros\", \"geometric_median\"]\n";
    let swept = with(more);
    assert_eq!(values(&swept, "train.resample_every_steps"), [0, 0, 50, 50].map(|n| json!(n)));
    assert_eq!(swept.trials[1].config.train.options.b_dec_init_method, BDecInit::GeometricMedian);
    assert_eq!(swept.varied_keys, ["train.resample_every_steps", "train.b_dec_init_method"]);
    assert_eq!(swept.trials[0].varied["train.b_dec_init_method"], json!("zeros"));
    assert_eq!(ids(&plan(&resolved_toml(&swept))), ids(&swept));

    // Options that are off are not worth a line of a snippet.
    let snippet = trial_toml_snippet(&swept.trials[2].config);
    assert!(snippet.contains("resample_every_steps = 50") && !snippet.contains("b_dec_init"), "{snippet}");
    assert_eq!(plan(&format!("[sweep]\nname = \"one\"\n{snippet}")).trials[0].id, swept.trials[2].id);
}

/// The one problem of the minimal sweep with these settings.
fn problem(overrides: &[&str]) -> (Fault, String, String) {
    let SpecErrors { problems, .. } = with_overrides("", overrides).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:?}");
    let problem = &problems[0];
    (problem.fault, problem.key.clone(), format!("{}; {}", problem.found, problem.expected))
}

#[test]
fn what_an_architecture_cannot_use_is_told() {
    for (setting, architecture, wanted) in [
        ("train.k_anneal_steps=9", "jumprelu", "\"topk\" or \"batchtopk\""),
        ("train.normalize_aux_loss=true", "gated", "\"topk\" or \"batchtopk\""),
        ("train.topk_threshold_bias_correction=true", "topk", "\"batchtopk\" or \"matryoshka_batchtopk\""),
    ] {
        let (fault, key, text) = problem(&[setting, &format!("sae.architecture={architecture}")]);
        assert_eq!(fault, Fault::NoEffect);
        assert!(setting.starts_with(&key), "{key}");
        assert!(text.contains(&format!("sae.architecture is \"{architecture}\"")), "{text}");
        assert!(text.contains(wanted), "{text}");
    }
}

#[test]
fn what_an_option_that_is_off_cannot_use_is_told() {
    let (fault, key, text) = problem(&["train.resample_until_step=9"]);
    assert_eq!((fault, key.as_str()), (Fault::NoEffect, "train.resample_until_step"));
    assert_eq!(
        text,
        "no trial uses it: train.resample_every_steps is 0 in all of them; a trial with \
         train.resample_every_steps above 0"
    );
    // One trial that uses it is enough, and the others do not differ by it.
    let some = format!("{MINIMAL}resample_until_step = 90\n[axes]\ntrain.resample_every_steps = [0, 50]\n");
    let some = plan(&some);
    assert_eq!(some.trials[0].id, with("").trials[0].id);
    assert_eq!(some.trials[1].config.train.options.resample_until_step, 90);
    let alike = "[axes]\ntrain.resample_every_steps = [0, 50]\ntrain.resample_until_step = [100, 200]\n";
    let SpecErrors { problems, .. } = with_overrides(alike, &[]).unwrap_err();
    assert_eq!(problems[0].fault, Fault::Alike);
    assert!(problems[0].hint.as_ref().unwrap().contains("train.resample_every_steps == 0"), "{problems:?}");
}

#[test]
fn numbers_that_cannot_be_are_told() {
    // 245 steps.
    let topk = "sae.architecture=topk";
    let cases: [(&[&str], &str); 7] = [
        (&["train.resample_every_steps=246"], "at most the 245 steps"),
        (&["train.resample_every_steps=50", "train.resample_until_step=49"], "at least once"),
        (&[topk, "train.k_anneal_steps=246"], "at most the 245 steps"),
        (&[topk, "train.k_anneal_steps=9", "train.k_start=99"], "from sae.k to sae.d_sae"),
        (&[topk, "train.k_anneal_steps=9", "train.k_start=513"], "from sae.k to sae.d_sae"),
        (&["train.max_norm_multiple=0.5"], "at least 1"),
        (&["train.b_dec_init_method=median"], "geometric_median"),
    ];
    for (overrides, wanted) in cases {
        let (fault, _, text) = problem(overrides);
        let expected = if wanted == "geometric_median" { Fault::UnknownValue } else { Fault::Contradiction };
        assert_eq!(fault, expected, "{text}");
        assert!(text.contains(wanted), "{text}");
    }
    let fine = [
        "train.resample_every_steps=245",
        topk,
        "train.k_anneal_steps=245",
        "train.k_start=512",
        "sae.k=512",
    ];
    assert_eq!(with_overrides("", &fine).unwrap().trials.len(), 1);
}
