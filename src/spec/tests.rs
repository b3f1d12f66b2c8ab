//! Tests of the whole way from text to plan.

mod architectures;
mod draws;
mod identity;
mod options;
mod properties;
mod sources;
mod starts;
mod transcoders;

use super::{
    DEFAULTS_TOML, LocalName, Plan, SpecErrors, SpecSource, canonical, flat,
    keys::{KEYS, Kind, Presence, Used, find, trial_keys},
    load, resolved_toml, trial_toml_snippet,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const MINIMAL: &str = r#"
[sweep]
name = "toy"
[model]
name = "org/model"
hook = "blocks.0.hook_mlp_out"
[data]
dataset = "stories.jsonl"
[sae]
d_sae = 512
[train]
tokens = 1_000_000
"#;

const TOY: &str = r#"
[sweep]
name = "toy"
objective = { metric = "recovered_share" }
[activations]
source = "toy"
n_features = 256
d_in = 64
mean_active = 8
[sae]
d_sae = 512
[train]
tokens = 1_000_000
"#;

const FILES: &str = r#"
[sweep]
name = "files"
objective = { metric = "explained_variance" }
[activations]
source = "files"
files = "acts"
[sae]
d_sae = 512
[train]
tokens = 1_000_000
"#;

fn source(text: &str) -> SpecSource {
    SpecSource { path: "sweeps/toy.toml".to_owned(), text: text.to_owned(), ..SpecSource::default() }
}

fn plan(text: &str) -> Plan {
    load(&source(text)).unwrap_or_else(|errors| panic!("{errors}\n\n{text}"))
}

/// The minimal sweep and more.
fn with(more: &str) -> Plan {
    plan(&format!("{MINIMAL}{more}"))
}

pub(super) fn with_overrides(more: &str, overrides: &[&str]) -> Result<Plan, SpecErrors> {
    let overrides = overrides.iter().map(|text| (*text).to_owned()).collect();
    load(&SpecSource { overrides, ..source(&format!("{MINIMAL}{more}")) })
}

pub(super) fn texts(all: &[String]) -> Vec<&str> {
    all.iter().map(String::as_str).collect()
}

fn ids(plan: &Plan) -> Vec<String> {
    plan.trials.iter().map(|trial| trial.id.0.clone()).collect()
}

fn values(plan: &Plan, key: &str) -> Vec<Value> {
    plan.trials.iter().map(|trial| flat(&trial.config)[key].clone()).collect()
}

#[test]
fn minimal_sweep_is_one_trial() {
    let plan = with("");
    assert_eq!(plan.trials.len(), 1);
    assert_eq!(plan.varied_keys, Vec::<String>::new());
    assert_eq!(plan.notes, Vec::<String>::new());
    // Both are part of the promise that an id means the same tomorrow: a change here needs a new first line.
    insta::assert_snapshot!(canonical(&plan.trials[0].config));
    assert_eq!(plan.trials[0].id.0, "2a428e77e36e");
}

#[test]
fn snippet_and_resolved_sweep_read_well() {
    let plan = with_overrides(
        "[axes]\nsae.l1_coefficient = [1, 5]\ntrain.lr = { log = [1e-5, 1e-3], steps = 3 }\n\
         [derive]\ntrain.lr_decay_steps = \"train.steps // 5\"\n\
         [[exclude]]\nwhen = \"train.lr > 5e-4 and sae.l1_coefficient > 2\"\nreason = \"diverges\"\n",
        &["train.batch_size=1024", "store.dtype=float16"],
    )
    .unwrap();
    insta::assert_snapshot!(resolved_toml(&plan));
    insta::assert_snapshot!(trial_toml_snippet(&plan.trials[0].config));
}

#[test]
fn table_defaults_and_structs_name_the_same_settings() {
    let defaults: toml::Table = DEFAULTS_TOML.parse().unwrap();
    let mut written = BTreeSet::new();
    collect("", &toml::Value::Table(defaults), &mut written);
    let with_default: BTreeSet<String> = KEYS
        .iter()
        .filter(|key| matches!(key.presence, Presence::Default | Presence::Auto(_)))
        .map(|key| key.name.to_owned())
        .collect();
    assert_eq!(written, with_default);
    for key in KEYS.iter().filter(|key| !with_default.contains(key.name)) {
        let last = key.name.rsplit('.').next().unwrap();
        assert!(DEFAULTS_TOML.contains(&format!("\n# {last} = ")), "{} is documented", key.name);
    }
    let mut in_structs: BTreeSet<String> = BTreeSet::new();
    for &architecture in architectures() {
        let plan = with_overrides("", &texts(&of_architecture(architecture))).unwrap();
        in_structs.extend(flat(&plan.trials[0].config).into_keys());
    }
    let started = with_overrides("", &["sae.init_from=sae"]).unwrap();
    in_structs.extend(flat(&started.trials[0].config).into_keys());
    let transcoder = with_overrides("", &["model.hook_out=later"]).unwrap();
    in_structs.extend(flat(&transcoder.trials[0].config).into_keys());
    for text in [TOY, FILES] {
        in_structs.extend(flat(&plan(text).trials[0].config).into_keys());
    }
    // Some are there only where another one is on.
    let on = ["sae.architecture=topk", "train.resample_every_steps=9", "train.k_anneal_steps=9"];
    in_structs.extend(flat(&with_overrides("", &on).unwrap().trials[0].config).into_keys());
    let in_table: BTreeSet<String> = trial_keys().map(|key| key.name.to_owned()).collect();
    assert_eq!(in_structs, in_table);
}

/// Names of all architectures.
pub(super) fn architectures() -> &'static [&'static str] {
    let Some(Kind::Word(names)) = find("sae.architecture").map(|key| key.kind) else {
        panic!("it is a word")
    };
    names
}

/// What a trial of an architecture needs.
pub(super) fn of_architecture(name: &str) -> Vec<String> {
    let widths = (name == "matryoshka_batchtopk").then_some("sae.matryoshka_widths=[64, 512]");
    [format!("sae.architecture={name}")].into_iter().chain(widths.map(str::to_owned)).collect()
}

fn collect(prefix: &str, value: &toml::Value, names: &mut BTreeSet<String>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                collect(&name, value, names);
            }
        }
        _ => {
            names.insert(prefix.to_owned());
        }
    }
}

#[test]
fn words_of_the_table_are_those_of_the_structs() {
    // Other sources take other settings; they have a test of their own.
    for key in trial_keys().filter(|key| key.name != "activations.source") {
        let Kind::Word(words) = key.kind else { continue };
        for word in words {
            // Only a target brings a further required setting.
            let mut overrides = vec![format!("{}={word}", key.name)];
            if let Used::Architectures(names) = key.used {
                overrides.push(format!("sae.architecture={}", names[0]));
            }
            if *word == "matryoshka_batchtopk" {
                overrides.push("sae.matryoshka_widths=[9, 512]".to_owned());
            }
            if *word == "quadratic" {
                overrides.push("sae.target_l0=9".to_owned());
            }
            let overrides: Vec<&str> = overrides.iter().map(String::as_str).collect();
            let plan = with_overrides("", &overrides).unwrap_or_else(|errors| panic!("{errors}"));
            assert_eq!(flat(&plan.trials[0].config)[key.name], json!(word));
        }
    }
}

#[test]
fn layers_win_from_the_top() {
    let env = vec![
        ("SAESWEEP_TRAIN__LR".to_owned(), "2e-4".to_owned()),
        ("SAESWEEP_TRAIN__SEED".to_owned(), "7".to_owned()),
        ("SAESWEEP_MODEL__NAME".to_owned(), "7".to_owned()),
        ("SAESWEEP_LOG".to_owned(), "debug".to_owned()),
        ("PATH".to_owned(), "/bin".to_owned()),
    ];
    let text = format!("{MINIMAL}lr = 1e-4\nbatch_size = 512\n");
    let overrides = vec!["train.seed=8".to_owned(), "train.seed = 9".to_owned()];
    let plan = load(&SpecSource { env, overrides, ..source(&text) }).unwrap();
    let config = &plan.trials[0].config;
    assert_eq!(config.train.lr, 2e-4);
    assert_eq!(config.train.seed, 9);
    assert_eq!(config.train.batch_size, 512);
    assert_eq!(config.source.model().unwrap().0.name, "7");
    assert_eq!(config.train.data_seed, 42);
}

#[test]
fn a_value_from_outside_replaces_what_would_vary() {
    let axes = "[axes]\nsae.d_sae = [512, 1024]\ntrain.lr = [1e-4, 1e-3]\n[derive]\ntrain.lr_decay_steps = \"train.steps // 5\"\n";
    let plan = with_overrides(axes, &["sae.d_sae=256", "train.lr_decay_steps=3"]).unwrap();
    assert_eq!(values(&plan, "sae.d_sae"), [json!(256), json!(256)]);
    assert_eq!(values(&plan, "train.lr_decay_steps"), [json!(3), json!(3)]);
    assert_eq!(
        plan.notes,
        [
            "sae.d_sae is fixed at 256 by --set sae.d_sae=256; its axis is not used",
            "train.lr_decay_steps is fixed at 3 by --set train.lr_decay_steps=3; its [derive] expression is not used",
        ]
    );
    let plan =
        with_overrides(axes, &["axes.sae.d_sae=[64]", "axes.sae={ k = [3] }", "sae.architecture=topk"])
            .unwrap();
    assert_eq!(values(&plan, "sae.d_sae"), [json!(64), json!(64)]);
    assert_eq!(values(&plan, "sae.k"), [json!(3), json!(3)]);
}

#[test]
fn the_first_axis_varies_slowest() {
    let plan = with("[axes]\ntrain.lr = [1e-4, 1e-3]\n\"sae.d_sae\" = [512, 1024]\n");
    assert_eq!(values(&plan, "train.lr"), [1e-4, 1e-4, 1e-3, 1e-3].map(|x| json!(x)));
    assert_eq!(values(&plan, "sae.d_sae"), [512, 1024, 512, 1024].map(|x| json!(x)));
    assert_eq!(plan.varied_keys, ["train.lr", "sae.d_sae"]);
    let swapped = with("[axes]\nsae.d_sae = [512, 1024]\ntrain.lr = [1e-4, 1e-3]\n");
    assert_eq!(swapped.varied_keys, ["sae.d_sae", "train.lr"]);
    assert_eq!(BTreeSet::from_iter(ids(&plan)), BTreeSet::from_iter(ids(&swapped)));
}

#[test]
fn spaced_axes_include_both_ends() {
    let plan = with("[axes]\ntrain.lr = { log = [1e-5, 1e-3], steps = 5 }\n");
    assert_eq!(values(&plan, "train.lr"), [1e-5, 3.16228e-5, 1e-4, 3.16228e-4, 1e-3].map(|x| json!(x)));
    let plan = with("[axes]\nsae.decoder_init_norm = { linear = [0, 1], steps = 11 }\n");
    assert_eq!(values(&plan, "sae.decoder_init_norm")[3], json!(0.3));
    assert_eq!(values(&plan, "sae.decoder_init_norm")[10], json!(1.0));
    let plan = with("[axes]\nsae.d_sae = { log = [512, 8192], steps = 5 }\n");
    assert_eq!(values(&plan, "sae.d_sae"), [512, 1024, 2048, 4096, 8192].map(|x| json!(x)));
    let plan = with("[axes]\nsae.d_sae = { linear = [4096, 1024], steps = 4 }\n");
    assert_eq!(values(&plan, "sae.d_sae"), [4096, 3072, 2048, 1024].map(|x| json!(x)));
}

#[test]
fn zips_move_together_and_repeats_count_up() {
    let plan = with(
        "[axes]\ntrain.seed = { repeats = 2 }\n[[zip]]\nsae.architecture = [\"standard\", \"topk\"]\ntrain.batch_size = [1024, 4096]\n",
    );
    assert_eq!(values(&plan, "train.seed"), [42, 42, 43, 43].map(|x| json!(x)));
    assert_eq!(values(&plan, "train.batch_size"), [1024, 4096, 1024, 4096].map(|x| json!(x)));
    assert_eq!(plan.trials[1].config.sae.architecture.name(), "topk");
    assert_eq!(plan.varied_keys, ["train.seed", "sae.architecture", "train.batch_size"]);
}

#[test]
fn listed_trials_stand_alone_or_after_a_grid() {
    let trials = "[[trial]]\nsae.d_sae = 64\n[[trial]]\nsae.d_sae = 128\ntrain.lr = 1e-3\n";
    let listed = plan(
        &format!("{MINIMAL}{trials}[axes]\ntrain.seed = {{ repeats = 2 }}\n")
            .replace("name = \"toy\"", "name = \"toy\"\nstrategy = \"list\""),
    );
    assert_eq!(values(&listed, "sae.d_sae"), [64, 64, 128, 128].map(|x| json!(x)));
    assert_eq!(values(&listed, "train.seed"), [42, 43, 42, 43].map(|x| json!(x)));
    let grid = with(&format!("[axes]\nsae.d_sae = [512, 1024]\n{trials}"));
    assert_eq!(values(&grid, "sae.d_sae"), [512, 1024, 64, 128].map(|x| json!(x)));
    assert_eq!(grid.varied_keys, ["sae.d_sae", "train.lr"]);
}

#[test]
fn derived_values_may_use_each_other_and_come_before_excludes() {
    let plan = with(
        "batch_size = 1000\n[axes]\ntrain.tokens = [100_000, 1e6]\n[derive]\n\
         train.lr_decay_steps = \"train.lr_warm_up_steps * 4\"\ntrain.lr_warm_up_steps = \"floor(train.steps * 0.05)\"\n\
         train.lr = \"1e-3 * sqrt(train.batch_size / 4000)\"\n[[exclude]]\nwhen = \"train.lr_decay_steps > 100\"\n",
    );
    assert_eq!(values(&plan, "train.lr_warm_up_steps"), [json!(5)]);
    assert_eq!(values(&plan, "train.lr_decay_steps"), [json!(20)]);
    assert_eq!(values(&plan, "train.lr"), [json!(5e-4)]);
    assert_eq!(plan.notes, ["excluded 1 combination by \"train.lr_decay_steps > 100\""]);
}

#[test]
fn auto_follows_other_settings() {
    let plan = with(
        "lr_scheduler_name = \"cosineannealing\"\n[axes]\ntrain.lr = [1e-3, 1e-4]\ntrain.tokens = [1e5, 1e6]\n",
    );
    assert_eq!(plan.trials[0].config.train.lr_end, 1e-4);
    assert_eq!(values(&plan, "store.tokens"), [100_000, 1_000_000, 100_000, 1_000_000].map(|x| json!(x)));
    assert_eq!(plan.varied_keys, ["train.lr", "train.tokens"]);
    assert!(plan.notes[0].contains("2 activation stores"), "{:?}", plan.notes);
    let written = with("lr_scheduler_name = \"cosineannealing\"\nlr_end = 3e-5\n[store]\ntokens = 1e6\n");
    let auto = with("lr_scheduler_name = \"cosineannealing\"\n");
    assert_eq!(ids(&written), ids(&auto));
}

#[test]
fn a_setting_that_a_trial_does_not_use_is_not_in_it() {
    let plan = with("[[zip]]\nsae.architecture = [\"standard\", \"topk\", \"topk\"]\nsae.k = [1, 1, 2]\n");
    let k: Vec<Option<Value>> = plan.trials.iter().map(|trial| trial.varied.get("sae.k").cloned()).collect();
    assert_eq!(k, [None, Some(json!(1)), Some(json!(2))]);
    assert!(!canonical(&plan.trials[0].config).contains("sae.k"));
}

#[test]
fn relative_names_start_at_the_sweep_file_or_where_the_user_stands() {
    let plan = with_overrides("", &["data.dataset=data/stories.jsonl"]).unwrap();
    let spec = &plan.spec;
    let home = Path::new("/h");
    assert_eq!(spec.local_path("a/model", None), LocalName::PathOrHub(PathBuf::from("sweeps/a/model")));
    assert_eq!(spec.local_path("./model", None), LocalName::Path(PathBuf::from("sweeps/./model")));
    assert_eq!(spec.local_path("/m/x.gguf", None), LocalName::Path(PathBuf::from("/m/x.gguf")));
    assert_eq!(spec.local_path("~/x.gguf", Some(home)), LocalName::Path(PathBuf::from("/h/x.gguf")));
    assert_eq!(
        spec.local_path("data/stories.jsonl", None),
        LocalName::Path(PathBuf::from("data/stories.jsonl"))
    );
}

#[test]
fn goal_is_the_metrics_own_unless_given() {
    use crate::metric::Goal;
    assert_eq!(with("").spec.sweep.objective.goal, Goal::Maximize);
    let plan = with_overrides("", &["sweep.objective.metric=mse"]).unwrap();
    assert_eq!(plan.spec.sweep.objective.goal, Goal::Minimize);
    let plan = with_overrides("", &["sweep.objective={ metric = \"l0\", goal = \"maximize\" }"]).unwrap();
    assert_eq!(
        (plan.spec.sweep.objective.metric.as_str(), plan.spec.sweep.objective.goal),
        ("l0", Goal::Maximize)
    );
}
