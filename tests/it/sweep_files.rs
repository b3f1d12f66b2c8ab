//! Every sweep file in `sweeps/` gives the trials that its comments promise.

use saesweep::spec::{LocalName, Plan, SpecSource, load, resolved_toml};
use std::path::{Path, PathBuf};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/sweeps");

fn files() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(FOLDER)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "toml"))
        .collect();
    files.sort();
    files
}

fn plan(path: &Path, overrides: &[&str]) -> Plan {
    let source = SpecSource {
        path: path.display().to_string(),
        text: std::fs::read_to_string(path).unwrap(),
        env: Vec::new(),
        overrides: overrides.iter().map(|text| (*text).to_owned()).collect(),
    };
    load(&source).unwrap_or_else(|errors| panic!("{errors}"))
}

fn named(name: &str, overrides: &[&str]) -> Plan {
    plan(&Path::new(FOLDER).join(name), overrides)
}

#[test]
fn every_file_expands_and_survives_being_resolved() {
    let files = files();
    assert!(files.len() >= 5);
    for path in files {
        let planned = plan(&path, &[]);
        assert!(planned.trials.len() >= 6, "{}", path.display());
        let source = SpecSource { text: resolved_toml(&planned), ..SpecSource::default() };
        let again = load(&source).unwrap_or_else(|errors| panic!("{errors}"));
        let ids = |plan: &Plan| plan.trials.iter().map(|trial| trial.id.clone()).collect::<Vec<_>>();
        assert_eq!(ids(&again), ids(&planned), "{}", path.display());
        // One store for all trials.
        assert!(!planned.notes.iter().any(|note| note.contains("stores")), "{:?}", planned.notes);
        // The axes go through sparsity and the learning rate; on toy data, through sparsity with several seeds.
        let expected: &[&str] = match path.file_stem().unwrap().to_str().unwrap() {
            "toy" => &["train.seed", "sae.architecture", "sae.l1_coefficient", "sae.k"],
            _ => &["sae.l1_coefficient", "train.lr"],
        };
        let (mut varied, mut expected) = (planned.varied_keys.clone(), expected.to_vec());
        varied.sort();
        expected.sort_unstable();
        assert_eq!(varied, expected, "{}", path.display());
    }
}

#[test]
fn the_tutorial_s_own_trial_is_in_its_grid() {
    let planned = named("tinystories.toml", &[]);
    let own = planned
        .trials
        .iter()
        .find(|trial| trial.varied["sae.l1_coefficient"] == 5.0 && trial.varied["train.lr"] == 5e-5);
    let config = &own.expect("the tutorial's trial").config;
    assert_eq!((config.train.steps(), config.train.batch_size), (30_000, 4096));
    let (_, data) = config.source.model().unwrap();
    assert_eq!((config.sae.d_sae, data.context_size), (16_384, 512));
    assert_eq!((config.train.lr_decay_steps, config.train.lr_warm_up_steps), (6_000, 0));
    let saesweep::trial::Architecture::Standard { l1_warm_up_steps, .. } = config.sae.architecture else {
        panic!("a standard SAE");
    };
    assert_eq!(l1_warm_up_steps, 1_500);
    let short = named("tinystories.toml", &["train.tokens=2e6", "store.tokens=2e6"]);
    assert_eq!(short.trials[0].config.train.lr_decay_steps, 97);
}

fn model_name(plan: &Plan) -> String {
    plan.trials[0].config.source.model().unwrap().0.name.clone()
}

#[test]
fn local_names_lie_beside_the_file_unless_given_from_outside() {
    let quickstart = named("quickstart.toml", &[]);
    let at = |name: &str| Path::new(FOLDER).join(name);
    assert_eq!(
        quickstart.spec.local_path("quickstart/model", None),
        LocalName::PathOrHub(at("quickstart/model"))
    );
    assert_eq!(
        quickstart.spec.local_path("quickstart/stories.jsonl", None),
        LocalName::Path(at("quickstart/stories.jsonl"))
    );
    let smollm2 = named("smollm2.toml", &["model.name=models/x.gguf", "data.dataset=/data/stories.jsonl"]);
    assert_eq!(model_name(&smollm2), "models/x.gguf");
    assert_eq!(
        smollm2.spec.local_path("models/x.gguf", None),
        LocalName::Path(PathBuf::from("models/x.gguf"))
    );
    let hub = named("tinystories.toml", &[]);
    let name = model_name(&hub);
    assert!(matches!(hub.spec.local_path(&name, None), LocalName::PathOrHub(_)));
}
