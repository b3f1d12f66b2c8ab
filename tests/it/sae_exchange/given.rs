//! SAEs from elsewhere, read and evaluated.

use super::{config, copy, edit, info, json};
use crate::tiny_sweep::TinySweep;
use saesweep::{
    sae::{CONFIG_FILE, load, load_with_origin, save},
    trial::Architecture,
};
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::Path};

#[test]
fn thresholds_and_old_settings_are_read() {
    let fixture = |name: &str| {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/sae")).join(name);
        load_with_origin(&folder).unwrap()
    };
    let (sae, origin) = fixture("before_6_topk");
    assert_eq!(sae.cfg.architecture.name(), "topk");
    assert_eq!(origin.hook.as_deref(), Some("blocks.0.hook_mlp_out"));
    assert_eq!(origin.model.as_deref(), Some("tiny"));
    let (sae, _) = fixture("jumprelu_trained");
    assert_eq!((sae.cfg.architecture.name(), sae.params.threshold.len()), ("jumprelu", 12));
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("sae");
    let info = info(config("d_sae = 12"), BTreeMap::new());
    save(&folder, &sae, None, &info).unwrap();
    let again = load(&folder).unwrap();
    assert_eq!(again.params, sae.params);

    let old = |changes: &[(&str, Value)]| {
        let folder = dir.path().join("old");
        copy(
            Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/sae/before_6_standard")),
            &folder,
        );
        edit(&folder.join(CONFIG_FILE), |config| {
            for (key, value) in changes {
                config[*key] = value.clone();
            }
        });
        load(&folder).map(|sae| sae.cfg.architecture.name()).map_err(|err| err.to_string())
    };
    assert_eq!(old(&[("sae_lens_version", Value::from("5.11.0"))]), Ok("standard"));
    assert_eq!(old(&[("normalize_activations", Value::Null)]), Ok("standard"));
    let refused = old(&[("activation_fn_str", Value::from("tanh-relu"))]).unwrap_err();
    assert!(refused.contains("`activation_fn` = \"tanh-relu\", expected \"relu\" or \"topk\""), "{refused}");
    let refused = old(&[("architecture", Value::from("temporal"))]).unwrap_err();
    assert!(refused.contains("\"temporal\", expected \"standard\", \"gated\", \"topk\""), "{refused}");
    let refused = old(&[("architecture", Value::from("gated"))]).unwrap_err();
    assert!(refused.contains("\"b_enc\"") && refused.contains("\"b_gate\""), "{refused}");
    let refused = old(&[("architecture", Value::from("jumprelu"))]).unwrap_err();
    assert!(refused.contains("\"threshold\""), "{refused}");
    let refused = old(&[("sae_lens_version", Value::from("6.0.0"))]).unwrap_err();
    assert!(refused.contains("lacks `architecture`"), "{refused}");
}

#[test]
fn saes_from_elsewhere_stand_beside_the_trials() {
    let sweep = TinySweep::new();
    sweep.expect(&["run", "sweep.toml"], 0);
    let (id, folder) = sweep.trials().into_iter().next().unwrap();
    let result = json(&folder.join("result.json"));
    let here = sweep.path("given");
    sweep.expect(&["export", &id, "--to", "given"], 0);
    // The same function as a JumpReLU whose thresholds are 0, and in the settings of an older SAELens.
    let sae = load(&here).unwrap();
    let info = info(config("d_sae = 48"), BTreeMap::new());
    let mut jump = sae.clone();
    jump.cfg.architecture = Architecture::jumprelu_trained_otherwise();
    jump.params.threshold = vec![0.0; sae.cfg.d_sae];
    save(&sweep.path("jump"), &jump, None, &info).unwrap();
    copy(&here, &sweep.path("old"));
    let flat = serde_json::json!({
        "d_in": 24, "d_sae": 48, "dtype": "torch.float32", "hook_name": "blocks.0.hook_mlp_out",
        "apply_b_dec_to_input": sae.cfg.apply_b_dec_to_input
    });
    fs::write(sweep.path("old").join(CONFIG_FILE), flat.to_string()).unwrap();

    let (stdout, stderr) =
        sweep.expect(&["eval", "given", "jump", "old", "--run", "tiny", "--format", "json"], 0);
    assert!(stderr.contains("`old` was trained at blocks.0.hook_mlp_out"), "{stderr}");
    let shown: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(shown["store"], result["store_key"]);
    let rows = shown["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 6);
    let scores: Vec<f64> = rows.iter().map(|row| row["metrics"]["ce_loss_score"].as_f64().unwrap()).collect();
    assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
    for (name, architecture) in [("given", "standard"), ("jump", "jumprelu"), ("old", "standard")] {
        let row = rows.iter().find(|row| row["name"] == name).unwrap();
        assert_eq!((&row["architecture"], &row["from"]), (&architecture.into(), &"folder".into()));
        for (metric, value) in row["metrics"].as_object().unwrap() {
            assert_eq!(value, &result["metrics"][metric], "{name}: {metric}");
        }
    }

    let key = result["store_key"].as_str().unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/model/gpt_neo");
    let (stdout, _) = sweep.expect(&["eval", "given", "--store", key, "--model", model], 0);
    assert!(stdout.lines().count() == 2 && stdout.contains("given  folder  standard"), "{stdout}");

    let llama = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/model/llama");
    let (_, stderr) = sweep.expect(&["eval", "given", "--run", "tiny", "--model", llama], 2);
    assert!(stderr.contains("is not the model of store"), "{stderr}");
    let narrow = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/sae/topk");
    let (_, stderr) = sweep.expect(&["eval", "given", narrow, "--run", "tiny"], 2);
    assert!(stderr.contains("is 6 x 12 (d_in x d_sae)") && stderr.contains("of width 24"), "{stderr}");
    edit(&sweep.path("jump").join(CONFIG_FILE), |config| config["d_sae"] = 47.into());
    let (_, stderr) = sweep.expect(&["eval", "jump", "--run", "tiny"], 1);
    assert!(stderr.contains("[24, 48]") && stderr.contains("[24, 47]"), "{stderr}");
    sweep.expect(&["eval", "given"], 2);
}
