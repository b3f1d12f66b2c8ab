//! Sweeps whose activations come from elsewhere than a language model.

use super::*;

#[test]
fn settings_of_another_source_are_no_part_of_a_trial() {
    let (toy, files) = (plan(TOY), plan(FILES));
    for (plan, section, n) in [(&toy, "activations.", 12), (&files, "activations.", 5)] {
        let flat = flat(&plan.trials[0].config);
        assert_eq!(flat.keys().filter(|key| key.starts_with(section)).count(), n, "{flat:?}");
        assert!(!flat.keys().any(|key| key.starts_with("model.") || key.starts_with("data.")));
    }
    // A path and a list of one path are the same.
    let listed = plan(&FILES.replace("\"acts\"", "[\"acts\"]"));
    assert_eq!(ids(&listed), ids(&files));
    // Writing a default changes nothing, and so does writing the default source.
    assert_eq!(ids(&plan(&TOY.replace("d_in = 64", "d_in = 64\nnoise = 0.0"))), ids(&toy));
    assert_eq!(ids(&plan(&format!("[activations]\nsource = \"model\"\n{MINIMAL}"))), ids(&plan(MINIMAL)));
    // Every setting of the source makes another trial.
    let mut seen: BTreeSet<String> = ids(&toy).into_iter().collect();
    for change in [
        "n_features=255",
        "d_in=65",
        "mean_active=7",
        "probability_power=0.1",
        "norm_power=0.1",
        "spread=0.1",
        "correlation=0.1",
        "group_size=2",
        "noise=0.1",
        "seed=1",
        "eval_rows=5000",
    ] {
        let overrides = vec![format!("activations.{change}")];
        let plan = load(&SpecSource { overrides, ..source(TOY) }).unwrap_or_else(|errors| panic!("{errors}"));
        assert!(seen.insert(ids(&plan)[0].clone()), "{change}");
    }
}

#[test]
fn trials_of_two_sources_may_share_a_sweep() {
    let text = TOY.replace("source = \"toy\"", "files = [\"a.npy\", \"b\"]")
        + "[axes]\nactivations.source = [\"toy\", \"files\"]\n";
    let plan = plan(&text);
    let names: Vec<&str> = plan.trials.iter().map(|trial| trial.config.source.name()).collect();
    assert_eq!(names, ["toy", "files"]);
    assert!(plan.notes.iter().any(|note| note.contains("2 activation stores")), "{:?}", plan.notes);
    let again = load(&source(&resolved_toml(&plan))).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(ids(&again), ids(&plan));
    let missing = load(&source(&text.replace("files = [\"a.npy\", \"b\"]", ""))).unwrap_err().to_string();
    assert!(missing.contains("activations.files"), "{missing}");
}

#[test]
fn configurations_come_back_from_their_files() {
    for text in [MINIMAL, TOY, FILES] {
        let config = &plan(text).trials[0].config;
        let written = toml::to_string(config).unwrap();
        let read: crate::trial::TrialConfig = toml::from_str(&written).unwrap();
        assert_eq!(&read, config, "{written}");
    }
}
