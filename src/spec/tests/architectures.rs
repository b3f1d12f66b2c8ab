//! Settings that only some architectures have, or use otherwise.

use super::{ids, load, source, trial_toml_snippet, values, with_overrides};
use serde_json::json;

#[test]
fn a_configuration_comes_back_from_its_file() {
    let architectures = [
        vec!["sae.architecture=batchtopk", "sae.k=32"],
        vec!["sae.architecture=batchtopk", "sae.k=12.5"],
        vec!["sae.architecture=matryoshka_batchtopk", "sae.matryoshka_widths=[64, 5e2, 512]"],
        vec!["sae.architecture=jumprelu"],
        vec!["sae.architecture=gated"],
        vec!["sae.architecture=matching_pursuit", "sae.max_iterations=40"],
    ];
    for overrides in architectures {
        let plan = with_overrides("", &overrides).unwrap_or_else(|errors| panic!("{errors}"));
        let config = &plan.trials[0].config;
        let text = toml::to_string(config).unwrap();
        assert_eq!(&toml::from_str::<crate::trial::TrialConfig>(&text).unwrap(), config, "{text}");
        let text = serde_json::to_string(config).unwrap();
        assert_eq!(&serde_json::from_str::<crate::trial::TrialConfig>(&text).unwrap(), config, "{text}");
        // The snippet of a report is a sweep of the same trial.
        let again = load(&source(&format!("[sweep]\nname = \"again\"\n{}", trial_toml_snippet(config))));
        assert_eq!(ids(&again.unwrap_or_else(|errors| panic!("{errors}"))), ids(&plan));
    }
}

#[test]
fn settings_of_a_sparsity_loss_count_only_with_it() {
    let jumprelu = |overrides: &[&str]| {
        let overrides = [&["sae.architecture=jumprelu", "sae.l0_coefficient=0.1"], overrides].concat();
        with_overrides("", &overrides).unwrap_or_else(|errors| panic!("{errors}"))
    };
    let mode =
        |mode: &str, more: &str| ids(&jumprelu(&[&format!("sae.jumprelu_sparsity_loss_mode={mode}"), more]));
    assert_ne!(mode("tanh", "sae.jumprelu_tanh_scale=4.0"), mode("tanh", "sae.jumprelu_tanh_scale=3.0"));
    assert_ne!(mode("quadratic", "sae.target_l0=20"), mode("quadratic", "sae.target_l0=30"));

    // A target that only one of two modes reads leaves the other's trial what it is without.
    let modes = "[axes]\nsae.jumprelu_sparsity_loss_mode = [\"step\", \"quadratic\"]\n";
    let both = with_overrides(
        modes,
        &[
            "sae.architecture=jumprelu",
            "sae.l0_coefficient=0.1",
            "sae.target_l0=20",
            "sae.jumprelu_tanh_scale=4",
        ],
    );
    assert!(both.unwrap_err().to_string().contains("sae.jumprelu_tanh_scale"), "no trial uses it");
    let both =
        with_overrides(modes, &["sae.architecture=jumprelu", "sae.l0_coefficient=0.1", "sae.target_l0=20"]);
    let both = both.unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(ids(&both), [ids(&jumprelu(&[])), mode("quadratic", "sae.target_l0=20")].concat());
    assert_eq!(values(&both, "sae.target_l0"), [json!(0.0), json!(20.0)]);
}

#[test]
fn an_l0_coefficient_where_nothing_changes_is_told() {
    let notes = |mode: &str, coefficient: &str| {
        let (mode, coefficient) =
            (format!("sae.jumprelu_sparsity_loss_mode={mode}"), format!("sae.l0_coefficient={coefficient}"));
        with_overrides("", &["sae.architecture=jumprelu", &mode, &coefficient, "sae.target_l0=9"])
            .or_else(|_| with_overrides("", &["sae.architecture=jumprelu", &mode, &coefficient]))
            .unwrap()
            .notes
    };
    assert!(notes("step", "5.0")[0].starts_with("1 trial has sae.l0_coefficient above 1"));
    assert_eq!(notes("step", "1.0"), Vec::<String>::new());
    assert_eq!(notes("quadratic", "5.0"), Vec::<String>::new());
}

#[test]
fn a_pursuit_starts_from_rows_of_norm_1_whatever_the_others_do() {
    let mixed = with_overrides(
        "[axes]\nsae.architecture = [\"topk\", \"matching_pursuit\"]\n",
        &["sae.decoder_init_norm=0.2", "sae.residual_threshold=0.5"],
    );
    let mixed = mixed.unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(values(&mixed, "sae.decoder_init_norm"), [json!(0.2), json!(1.0)]);
    let alone = with_overrides("", &["sae.architecture=matching_pursuit", "sae.residual_threshold=0.5"]);
    assert_eq!(ids(&alone.unwrap()), ids(&mixed)[1..]);
    // Neither a norm that no trial uses nor trials that differ in nothing else.
    let unused = with_overrides("", &["sae.architecture=matching_pursuit", "sae.decoder_init_norm=0.2"]);
    assert!(unused.unwrap_err().to_string().contains("starts from decoder rows of norm 1"));
    let alike =
        "[axes]\nsae.architecture = [\"topk\", \"matching_pursuit\"]\nsae.decoder_init_norm = [0.1, 0.2]\n";
    let alike = with_overrides(alike, &[]).unwrap_err().to_string();
    assert!(alike.contains("does not use sae.decoder_init_norm"), "{alike}");
}
