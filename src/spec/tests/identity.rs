//! What makes a trial's identity, and that it survives being written.

use super::{
    super::{
        flat,
        keys::{KEYS, Kind, Scope, Used, find},
        load, trial_toml_snippet,
    },
    ids, of_architecture, source, with_overrides,
};
use std::collections::{BTreeMap, BTreeSet};

#[test]
fn a_configuration_comes_back_from_its_file() {
    let architectures = [
        vec!["sae.architecture=batchtopk", "sae.k=32"],
        vec!["sae.architecture=batchtopk", "sae.k=12.5"],
        vec!["sae.architecture=matryoshka_batchtopk", "sae.matryoshka_widths=[64, 5e2, 512]"],
        vec!["sae.architecture=jumprelu"],
        vec!["sae.architecture=gated"],
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
fn numbers_are_one_value_however_written() {
    let mut all = BTreeSet::new();
    for tokens in ["3e6", "3000000.0", "3_000_000", "3000000", "0x2DC6C0", "+3.0E6"] {
        for lr in ["1", "1.0", "1e0", "10e-1"] {
            let plan =
                with_overrides("", &[&format!("train.tokens={tokens}"), &format!("train.lr={lr}")]).unwrap();
            all.extend(ids(&plan));
        }
    }
    assert_eq!(all.len(), 1);
}

#[test]
fn every_setting_of_a_trial_is_in_its_id_and_no_other() {
    let base = |architecture: &str, overrides: &[String]| {
        let mut all = vec!["train.lr_scheduler_name=cosineannealingwarmrestarts".to_owned()];
        if architecture == "jumprelu" {
            all.push("sae.jumprelu_sparsity_loss_mode=tanh".to_owned());
        }
        all.extend(overrides.iter().cloned());
        let all: Vec<&str> =
            of_architecture(architecture).into_iter().chain(all.iter().map(String::as_str)).collect();
        ids(&with_overrides("", &all).unwrap_or_else(|errors| panic!("{errors}")))
    };
    for architecture in
        ["standard", "gated", "topk", "batchtopk", "matryoshka_batchtopk", "abstopk", "jumprelu"]
    {
        let unchanged = base(architecture, &[]);
        let mut seen = BTreeMap::from([(unchanged[0].clone(), "nothing")]);
        for key in KEYS {
            let value = match (key.name, key.kind) {
                ("sae.architecture" | "activations.source", _) => continue,
                // The widths end at it.
                ("sae.d_sae", _) if architecture == "matryoshka_batchtopk" => continue,
                ("sae.matryoshka_widths", _) => "[32, 512]".to_owned(),
                ("sae.jumprelu_sparsity_loss_mode", _) => "step".to_owned(),
                ("sweep.trials", _) => continue,
                ("sae.normalize_activations", _) => "covariance_whitening".to_owned(),
                ("train.lr_scheduler_name", _) => "cosineannealing".to_owned(),
                ("sweep.strategy" | "sweep.objective.metric", _) => continue,
                (_, Kind::Bool) => {
                    let plan = with_overrides("", &of_architecture(architecture)).unwrap();
                    match flat(&plan.trials[0].config).get(key.name) {
                        Some(value) => (!value.as_bool().unwrap()).to_string(),
                        None => continue,
                    }
                }
                (_, Kind::Int { .. } | Kind::Count { .. }) => "5000".to_owned().replace(
                    "5000",
                    match key.name {
                        "sae.k" | "train.n_restart_cycles" | "run.retries" => "7",
                        "train.lr_warm_up_steps"
                        | "train.lr_decay_steps"
                        | "sae.l1_warm_up_steps"
                        | "sae.l0_warm_up_steps"
                        | "train.resample_every_steps"
                        | "train.k_anneal_steps" => "9",
                        "train.k_start" => "200",
                        "devices.cpu_slots" | "devices.threads_per_trial" => "3",
                        _ => "5000",
                    },
                ),
                ("train.max_norm_multiple", _) => "1.5".to_owned(),
                (_, Kind::Float(_)) => "0.123".to_owned(),
                (_, Kind::Text { .. } | Kind::Folder) => "changed".to_owned(),
                (_, Kind::Word(words)) => (*words.last().unwrap()).to_owned(),
                (_, Kind::Sizes { .. }) => unreachable!("its only setting is above"),
                (_, Kind::Paths) => "[\"changed\"]".to_owned(),
                (_, Kind::Words(words)) => format!("[\"{}\"]", words[0]),
            };
            let mut overrides = vec![format!("{}={value}", key.name)];
            let decider = match key.used {
                Used::With(other) => {
                    overrides.push(format!("{other}=10"));
                    find(other).unwrap().used
                }
                used => used,
            };
            let is_foreign = match decider {
                Used::Architectures(names) => !names.contains(&architecture),
                Used::Modes(names) => architecture != "jumprelu" || !names.contains(&"tanh"),
                Used::DrawnJumpRelus => architecture != "jumprelu",
                Used::Sources(names) => !names.contains(&"model"),
                _ => false,
            };
            if is_foreign {
                continue;
            }
            let changed = base(architecture, &overrides);
            if key.scope == Scope::Sweep {
                assert_eq!(changed, unchanged, "{} is no part of an id", key.name);
            } else {
                let earlier = seen.insert(changed[0].clone(), key.name);
                assert_eq!(earlier, None, "{} = {value} changes the id", key.name);
            }
        }
    }
}
