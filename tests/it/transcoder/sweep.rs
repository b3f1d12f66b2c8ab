//! A sweep of transcoders by the real program, disturbed and not.

use super::super::tiny_sweep::{TinySweep, assert_same, expect};
use serde_json::Value;
use std::{fs, os::unix::process::ExitStatusExt};

/// The tiny sweep with transcoders of the three architectures.
fn transcoders() -> TinySweep {
    let sweep = TinySweep::new();
    sweep.edit(
        "hook = \"blocks.1.hook_mlp_out\"",
        "hook = \"blocks.1.hook_resid_mid\"\nhook_out = \"blocks.1.hook_mlp_out\"",
    );
    sweep.edit("d_sae = 48", "d_sae = 48\nk = 4\njumprelu_bandwidth = 0.2\nl0_coefficient = 0.01");
    sweep.edit(
        "sae.l1_coefficient = [0.5, 2.0, 8.0]",
        "sae.architecture = [\"standard\", \"topk\", \"jumprelu\"]",
    );
    sweep
}

fn json(path: &std::path::Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_sweep_of_transcoders_from_plan_to_export() {
    let sweep = transcoders();
    let (stdout, _) = sweep.expect(&["plan", "sweep.toml", "--format", "json"], 0);
    let plan: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(plan["stores"][0]["width"], 48);
    assert_eq!(plan["stores"][0]["hook"], "blocks.1.hook_resid_mid -> blocks.1.hook_mlp_out");
    assert_eq!(plan["trials"][0]["settings"]["sae.apply_b_dec_to_input"], false);
    sweep.expect(&["run", "sweep.toml"], 0);

    let report = fs::read_to_string(sweep.run_dir().join("report.md")).unwrap();
    assert!(report.contains("blocks.1.hook_resid_mid -> blocks.1.hook_mlp_out"), "{report}");
    let table = fs::read_to_string(sweep.run_dir().join("tables/trials.csv")).unwrap();
    assert!(table.lines().next().unwrap().contains("model.hook_out"), "{table}");
    let mut names = Vec::new();
    for (id, folder) in sweep.trials() {
        let (config, result) = (json(&folder.join("sae/cfg.json")), json(&folder.join("result.json")));
        let name = config["architecture"].as_str().unwrap().to_owned();
        assert_eq!((&config["d_in"], &config["d_out"]), (&24.into(), &24.into()));
        assert_eq!(config["apply_b_dec_to_input"], false);
        assert_eq!(config["normalize_activations"], "none", "folded");
        assert_eq!(config["metadata"]["hook_name"], "blocks.1.hook_resid_mid");
        assert_eq!(config["metadata"]["hook_name_out"], "blocks.1.hook_mlp_out");
        assert_eq!(result["status"], "done");
        let metric = |name: &str| result["metrics"][name].as_f64().unwrap();
        assert!(metric("ce_loss_with_sae") > 0.0 && metric("ce_loss_with_ablation") > 0.0);
        let first = fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
        let line = |nth: usize| -> Value { serde_json::from_str(first.lines().nth(nth).unwrap()).unwrap() };
        let mse = |line: Value| line["losses/mse_loss"].as_f64().unwrap();
        let last = first.lines().count() - 1;
        assert!(mse(line(last)) < mse(line(0)), "{name} learns");

        // SAELens has no TopK transcoder; dictionary_learning has none at all.
        let to = format!("out-{id}");
        let (code, told) =
            if name == "topk_transcoder" { (2, "a TopK transcoder") } else { (0, "no runner_cfg.json") };
        let (_, stderr) = sweep.expect(&["export", &id, "--to", &to], code);
        assert!(stderr.contains(told), "{stderr}");
        let dictionary = ["export", &id, "--to", "other", "--format", "dictionary-learning"];
        let (_, stderr) = sweep.expect(&dictionary, 2);
        assert!(stderr.contains("a transcoder") && !sweep.path("other").exists(), "{stderr}");
        // Its own folder can be evaluated again, whatever it is, with the same result.
        let own = folder.join("sae");
        let (stdout, _) =
            sweep.expect(&["eval", own.to_str().unwrap(), "--run", "tiny", "--format", "json"], 0);
        let shown: Value = serde_json::from_str(&stdout).unwrap();
        let row = shown["rows"].as_array().unwrap().iter().find(|row| row["from"] == "folder").unwrap();
        assert_eq!(row["metrics"]["ce_loss_with_sae"], result["metrics"]["ce_loss_with_sae"]);
        names.push(name);
    }
    names.sort();
    assert_eq!(names, ["jumprelu_transcoder", "topk_transcoder", "transcoder"]);
}

#[test]
fn killed_trials_leave_what_undisturbed_ones_do() {
    let first = transcoders();
    first.expect(&["run", "sweep.toml"], 0);
    let expected = first.lasting();
    let mut kills = 0;
    for (role, n) in [("trial", 3), ("trial", 9), ("trial", 20), ("coordinator", 6), ("coordinator", 14)] {
        let sweep = transcoders();
        let marker = sweep.path("killed-at");
        let output = sweep
            .command(&["run", "sweep.toml"])
            .env("SAESWEEP_TEST_KILL_AT", format!("{role}:{n}:{}", marker.display()))
            .output()
            .unwrap();
        kills += usize::from(marker.exists());
        if role == "coordinator" {
            assert_eq!(output.status.signal(), Some(9));
            sweep.expect(&["run", "sweep.toml"], 0);
        } else {
            expect(&output, 0);
        }
        assert_same(&sweep.lasting(), &expected, &format!("after {role} {n}"));
    }
    assert!(kills >= 4, "{kills}");
}

#[test]
fn hooks_in_the_wrong_order_are_refused_before_anything_runs() {
    let sweep = transcoders();
    sweep.edit("hook_out = \"blocks.1.hook_mlp_out\"", "hook_out = \"blocks.0.hook_mlp_out\"");
    let (_, stderr) = sweep.expect(&["run", "sweep.toml"], 2);
    assert!(stderr.contains("does not come after model.hook = `blocks.1.hook_resid_mid`"), "{stderr}");
    assert!(!sweep.path("cache").exists() && !sweep.run_dir().join("trials").exists());
}
