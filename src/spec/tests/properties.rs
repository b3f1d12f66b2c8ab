//! What holds of any sweep: how many trials it has, which ids they get, and that nothing makes it panic.

use super::super::{Fault, load, resolved_toml, trial_toml_snippet};
use super::{MINIMAL, ids, plan, source, with, with_overrides};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fmt::Write as _;

/// Axes with values to choose from, in the order in which a test's file lists them.
const AXES: &[(&str, &[&str])] = &[
    ("train.lr", &["1e-5", "1e-4", "0.001"]),
    ("sae.d_sae", &["64", "128", "2.5e2"]),
    ("sae.l1_coefficient", &["0", "1", "2.5"]),
    ("train.seed", &["1", "2", "3"]),
    ("sae.apply_b_dec_to_input", &["true", "false"]),
];

fn axes_strategy() -> impl Strategy<Value = Vec<(usize, usize)>> {
    proptest::sample::subsequence((0..AXES.len()).collect::<Vec<_>>(), 0..=AXES.len())
        .prop_shuffle()
        .prop_flat_map(|axes| {
            let sizes: Vec<_> = axes.iter().map(|axis| 1..=AXES[*axis].1.len()).collect();
            (Just(axes), sizes).prop_map(|(axes, sizes)| axes.into_iter().zip(sizes).collect())
        })
}

fn axes_text(axes: &[(usize, usize)]) -> String {
    let lines: Vec<String> = axes
        .iter()
        .map(|(axis, size)| format!("{} = [{}]\n", AXES[*axis].0, AXES[*axis].1[..*size].join(", ")))
        .collect();
    format!("[axes]\n{}", lines.concat())
}

/// One setting written in one of several ways.
fn written(value: &str, style: usize) -> String {
    match (value.parse::<f64>(), style % 4) {
        (Ok(x), 1) => format!("{x:e}"),
        (Ok(x), 2) if x.fract() == 0.0 => format!("{x:.1}"),
        (Ok(x), 3) if x.fract() == 0.0 => format!("{x}"),
        _ => value.to_owned(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_grid_is_the_product_less_what_is_excluded(axes in axes_strategy(), limit in 0_usize..400) {
        let more = axes_text(&axes);
        let product: usize = axes.iter().map(|(_, size)| size).product();
        let whole = with(&more);
        prop_assert_eq!(whole.trials.len(), product);
        let unique: BTreeSet<String> = ids(&whole).into_iter().collect();
        prop_assert_eq!(unique.len(), product);
        let kept: Vec<String> = whole.trials.iter()
            .filter(|trial| trial.config.sae.d_sae > limit)
            .map(|trial| trial.id.0.clone())
            .collect();
        let excluded = load(&source(&format!("{MINIMAL}{more}[[exclude]]\nwhen = \"sae.d_sae <= {limit}\"\n")));
        match excluded {
            Ok(plan) => {
                prop_assert_eq!(ids(&plan), kept);
                prop_assert!(plan.trials.iter().enumerate().all(|(index, trial)| trial.index == index));
            }
            Err(errors) => {
                prop_assert!(kept.is_empty());
                prop_assert!(errors.problems.iter().all(|problem| problem.fault == Fault::NothingLeft));
            }
        }
        let again = with(&more);
        prop_assert_eq!(ids(&again), ids(&whole));
    }

    #[test]
    fn form_and_order_of_the_file_change_no_id(
        axes in axes_strategy(),
        order in Just((0..8_usize).collect::<Vec<_>>()).prop_shuffle(),
        styles in proptest::collection::vec(0_usize..4, 8),
        dotted in any::<bool>(),
    ) {
        let settings = [
            ("sweep.name", "\"toy\""), ("model.name", "\"org/model\""), ("model.hook", "\"blocks.0.hook_mlp_out\""),
            ("data.dataset", "\"stories.jsonl\""), ("sae.d_sae", "512"), ("train.tokens", "1_000_000"),
            ("train.lr", "0.0005"), ("train.batch_size", "2000"),
        ];
        let mut text = String::new();
        let quote = |key: &str| if styles[0] % 2 == 0 { format!("\"{key}\"") } else { key.to_owned() };
        if dotted {
            for idx in &order {
                let (key, value) = settings[*idx];
                write!(text, "{key}   =  {} # a comment\n\n", written(value, styles[*idx])).unwrap();
            }
        } else {
            let sections: BTreeSet<&str> = settings.iter().map(|(key, _)| key.split('.').next().unwrap()).collect();
            for section in sections.into_iter().rev() {
                writeln!(text, "[{section}]").unwrap();
                for idx in &order {
                    let (key, value) = settings[*idx];
                    if let Some(last) = key.strip_prefix(section).and_then(|rest| rest.strip_prefix('.')) {
                        writeln!(text, "{last} = {}", written(value, styles[*idx])).unwrap();
                    }
                }
            }
        }
        text += "[axes]\n";
        for (axis, size) in axes.iter().rev() {
            let (key, all) = AXES[*axis];
            let all: Vec<String> = all[..*size].iter().rev().map(|value| written(value, styles[axis % 8])).collect();
            write!(text, "{} = [\n  {},\n]\n", quote(key), all.join(",\n  ")).unwrap();
        }
        let reformatted: BTreeSet<String> = ids(&plan(&text)).into_iter().collect();
        let plain = plan(&format!("{MINIMAL}lr = 5e-4\nbatch_size = 2000\n{}", axes_text(&axes)));
        prop_assert_eq!(reformatted, ids(&plain).into_iter().collect::<BTreeSet<_>>());
    }

    #[test]
    fn resolved_sweeps_and_snippets_give_the_same_trials(
        axes in axes_strategy(), topk in any::<bool>(), random in any::<bool>(),
    ) {
        let mut more = axes_text(&axes);
        more += "train.data_seed = { repeats = 2 }\n[derive]\ntrain.lr_warm_up_steps = \"train.steps // 10\"\n";
        more += "[[exclude]]\nwhen = \"train.seed == 3 and 'a\\\"b' != model.name\"\nreason = \"a \\\"reason\\\"\"\n";
        more += "[[zip]]\ntrain.adam_beta1 = [0.5, 0.5]\ntrain.adam_beta2 = [0.9, 0.99]\n";
        more += "[[trial]]\ntrain.dead_feature_window = 5\n";
        let mut overrides = vec!["train.batch_size=1024"];
        if random {
            overrides.extend(["sweep.strategy=random", "sweep.trials=4"]);
        }
        if topk && !axes.iter().any(|(axis, _)| AXES[*axis].0 == "sae.l1_coefficient") {
            overrides.extend(["sae.architecture=topk", "sae.k=7"]);
        }
        let Ok(plan) = with_overrides(&more, &overrides) else {
            // All seeds may be the excluded one.
            return Ok(());
        };
        let resolved = resolved_toml(&plan);
        let again = load(&source(&resolved)).unwrap_or_else(|errors| panic!("{errors}\n{resolved}"));
        prop_assert_eq!(ids(&again), ids(&plan));
        let snippet = trial_toml_snippet(&plan.trials[0].config);
        let alone = load(&source(&format!("sweep.name = \"one\"\n{snippet}"))).unwrap_or_else(|errors| panic!("{errors}\n{snippet}"));
        prop_assert_eq!(&ids(&alone)[..], &ids(&plan)[..1]);
    }

    #[test]
    fn no_text_makes_it_panic(
        cut in 0_usize..700, length in 0_usize..12, junk in "[\\[\\]{}=\"'.,a-z0-9\n#-]{0,8}",
    ) {
        let text = format!(
            "{MINIMAL}[axes]\nsae.l1_coefficient = [1, 5]\ntrain.lr = {{ log = [1e-5, 1e-3], steps = 3 }}\n\
             [[zip]]\nsae.d_sae = [1, 2]\ntrain.seed = [1, 2]\n[derive]\ntrain.lr_decay_steps = \"train.steps // 5\"\n\
             [[exclude]]\nwhen = \"train.lr > 5e-4\"\nreason = \"diverges\"\n[[trial]]\nsae.d_sae = 9\n"
        );
        let start = cut.min(text.len());
        let end = (start + length).min(text.len());
        let mutated = format!("{}{junk}{}", &text[..start], &text[end..]);
        if let Err(errors) = load(&source(&mutated)) {
            prop_assert!(!errors.problems.is_empty());
            prop_assert!(!errors.to_string().is_empty());
        }
        let name = &mutated[..mutated.len().min(start)];
        drop(with_overrides("", &[&junk, &format!("train.lr={junk}"), &format!("axes.{junk}"), name]));
    }
}
