//! Trials that start from an SAE.

use super::{assert_close, config, deviation, json, random_params};
use crate::small_sae::{forward, noise};
use crate::tiny_sweep::TinySweep;
use saesweep::{
    kernels::Pool,
    sae::{Normalizer, RUNNER_FILE, Sae, Start, check_start, start, weights_blake3},
    train::Trainer,
    trial::NormalizeActivations,
};
use serde_json::Value;
use std::path::PathBuf;

/// Rows whose covariance is far from round, and their mean norm, mean and covariance.
fn statistics(x: &[f32], d: usize) -> (f64, Vec<f64>, Vec<f64>) {
    let n = (x.len() / d) as f64;
    let norm = |row: &[f32]| row.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    let mean_norm = x.chunks(d).map(norm).sum::<f64>() / n;
    let mean: Vec<f64> = (0..d).map(|j| x.chunks(d).map(|row| f64::from(row[j])).sum::<f64>() / n).collect();
    let covariance = (0..d * d)
        .map(|at| {
            let (j, k) = (at / d, at % d);
            let product = |row: &[f32]| (f64::from(row[j]) - mean[j]) * (f64::from(row[k]) - mean[k]);
            x.chunks(d).map(product).sum::<f64>() / (n - 1.0)
        })
        .collect();
    (mean_norm, mean, covariance)
}

/// Settings of the SAE that is loaded, and of the trial that starts from it.
const STARTS: [(&str, &str); 11] = [
    ("", ""),
    ("architecture = \"gated\"", "architecture = \"gated\""),
    ("architecture = \"jumprelu\"", "architecture = \"jumprelu\""),
    (
        "architecture = \"topk\"\nk = 7\nrescale_acts_by_decoder_norm = true",
        "architecture = \"topk\"\nk = 7\nrescale_acts_by_decoder_norm = true",
    ),
    (
        "architecture = \"topk\"\nk = 7\nrescale_acts_by_decoder_norm = true",
        "architecture = \"topk\"\nk = 7\nrescale_acts_by_decoder_norm = false",
    ),
    (
        "architecture = \"topk\"\nk = 7\nrescale_acts_by_decoder_norm = false",
        "architecture = \"topk\"\nk = 7\nrescale_acts_by_decoder_norm = false",
    ),
    (
        "architecture = \"abstopk\"\nk = 7\nrescale_acts_by_decoder_norm = true",
        "architecture = \"abstopk\"\nk = 7\nrescale_acts_by_decoder_norm = true",
    ),
    (
        "architecture = \"abstopk\"\nk = 7\nrescale_acts_by_decoder_norm = true",
        "architecture = \"abstopk\"\nk = 7\nrescale_acts_by_decoder_norm = false",
    ),
    (
        "architecture = \"jumprelu\"",
        "architecture = \"batchtopk\"\nk = 7.5\nrescale_acts_by_decoder_norm = false",
    ),
    (
        "architecture = \"jumprelu\"",
        "architecture = \"batchtopk\"\nk = 7\nrescale_acts_by_decoder_norm = true",
    ),
    (
        "architecture = \"jumprelu\"",
        "architecture = \"matryoshka_batchtopk\"\nmatryoshka_widths = [20, 60]\nk = 7\n\
         rescale_acts_by_decoder_norm = true",
    ),
];

fn equalize_norms(rows: &mut [f32], d: usize, to: f32) {
    for row in rows.chunks_exact_mut(d) {
        let norm = row.iter().map(|w| w * w).sum::<f32>().sqrt();
        row.iter_mut().for_each(|w| *w *= to / norm);
    }
}

#[test]
fn training_starts_with_the_function_that_was_loaded() {
    use NormalizeActivations::{
        ConstantNormRescale, CovarianceWhitening, ExpectedAverageOnlyIn, LayerNorm, None as Unscaled,
    };
    let (d_in, d_sae) = (24, 60);
    let x: Vec<f32> = noise(400 * d_in, 4, 2.0)
        .iter()
        .enumerate()
        .map(|(at, x)| x * (0.3 + (at % d_in) as f32 / 8.0) + 0.7)
        .collect();
    let (mean_norm, mean, covariance) = statistics(&x, d_in);
    let pool = Pool::new(1);
    let mut worst = 0.0_f32;
    for (loaded_mode, modes) in [
        (Unscaled, &[Unscaled, ExpectedAverageOnlyIn, CovarianceWhitening][..]),
        (LayerNorm, &[LayerNorm]),
        (ConstantNormRescale, &[ConstantNormRescale]),
    ] {
        for (loaded_b_dec, b_dec) in [(false, false), (false, true), (true, false), (true, true)] {
            for (loaded, trial) in STARTS {
                let settings = |own: &str| config(&format!("d_sae = {d_sae}\n{own}"));
                let rescales = trial.contains("rescale_acts_by_decoder_norm = true");
                let mut cfg = settings(loaded).sae;
                (cfg.normalize_activations, cfg.apply_b_dec_to_input) = (loaded_mode, loaded_b_dec);
                let mut params = random_params(&cfg, d_in, 11);
                if trial.contains("batchtopk") {
                    params.threshold.fill(0.4);
                    if rescales {
                        equalize_norms(&mut params.w_dec, d_in, 0.7);
                    }
                }
                let sae = Sae { cfg, d_in, d_out: None, params };
                let expected = forward(&sae, &x);
                for &mode in modes {
                    if rescales && mode == CovarianceWhitening {
                        continue;
                    }
                    let mut config = settings(trial);
                    config.sae.normalize_activations = mode;
                    config.sae.apply_b_dec_to_input = b_dec;
                    config.train.batch_size = 4;
                    check_start(&sae, &config.sae, d_in).unwrap();
                    let normalizer = Normalizer::new(mode, d_in, mean_norm, &mean, &covariance).unwrap();
                    let Start { params, topk_threshold } =
                        start(sae.clone(), &config.sae, &normalizer, &pool);
                    let mut trainer =
                        Trainer::new(&config.sae, &config.train, d_in, params, normalizer, &pool);
                    trainer.topk_threshold = topk_threshold;
                    let found = forward(&trainer.finish(&pool).unwrap().sae, &x);
                    let what =
                        format!("{loaded:?} {loaded_mode:?} {loaded_b_dec} to {trial:?} {mode:?} {b_dec}");
                    worst = worst.max(deviation(&found.1, &expected.1));
                    assert_close(&what, &found.1, &expected.1, 2e-5);
                }
            }
        }
    }
    println!("after no step, reconstructions deviate by at most {worst:.1e} of the largest");
}

#[test]
fn what_cannot_be_started_from_is_refused_with_both_sides() {
    let d_in = 24;
    let sae = |settings: &str| {
        let cfg = config(settings).sae;
        let params = random_params(&cfg, d_in, 1);
        Sae { cfg, d_in, d_out: None, params }
    };
    let standard = sae("d_sae = 60");
    let jumprelu = sae("d_sae = 60\narchitecture = \"jumprelu\"");
    let mut shared = jumprelu.clone();
    shared.params.threshold.fill(0.1);
    let batch_topk = "d_sae = 60\nk = 3\narchitecture = \"batchtopk\"";
    let messages: Vec<String> = [
        (&standard, "d_sae = 61", 24),
        (&standard, "d_sae = 60", 25),
        (&standard, "d_sae = 60\nk = 3\narchitecture = \"topk\"", 24),
        (&jumprelu, "d_sae = 60", 24),
        (&jumprelu, "d_sae = 60\narchitecture = \"gated\"", 24),
        (&standard, batch_topk, 24),
        (&jumprelu, batch_topk, 24),
        (&shared, batch_topk, 24),
        (&standard, "d_sae = 60\nnormalize_activations = \"layer_norm\"", 24),
        (&sae("d_sae = 60\nnormalize_activations = \"layer_norm\""), "d_sae = 60", 24),
        (&sae("d_sae = 60\nnormalize_activations = \"expected_average_only_in\""), "d_sae = 60", 24),
        (
            &sae("d_sae = 60\nk = 3\narchitecture = \"topk\"\nrescale_acts_by_decoder_norm = false"),
            "d_sae = 60\nk = 3\narchitecture = \"topk\"",
            24,
        ),
    ]
    .into_iter()
    .map(|(sae, trial, d_in)| check_start(sae, &config(trial).sae, d_in).unwrap_err().to_string())
    .collect();
    insta::assert_snapshot!(messages.join("\n"), @r#"
    it is standard, 24 x 60 (d_in x d_sae), the trial's SAE is standard, 24 x 61 (d_in x d_sae)
    it is standard, 24 x 60 (d_in x d_sae), the trial's SAE is standard, 25 x 60 (d_in x d_sae)
    it is standard, 24 x 60 (d_in x d_sae), the trial's SAE is topk, 24 x 60 (d_in x d_sae)
    it is jumprelu, 24 x 60 (d_in x d_sae), the trial's SAE is standard, 24 x 60 (d_in x d_sae)
    it is jumprelu, 24 x 60 (d_in x d_sae), the trial's SAE is gated, 24 x 60 (d_in x d_sae)
    it is standard, 24 x 60 (d_in x d_sae), the trial's SAE is batchtopk, which starts from a jumprelu, 24 x 60 (d_in x d_sae)
    its latents have thresholds from 0.0008324862 to 0.29626498, the trial's batchtopk has one for all
    it does not measure latents by their decoder rows, which have different norms, and the trial has rescale_acts_by_decoder_norm = true: other latents would be the k largest
    it has normalize_activations = "none", the trial "layer_norm"; what is done to each row on its own is no part of the weights
    it has normalize_activations = "layer_norm", the trial "none"; what is done to each row on its own is no part of the weights
    it has normalize_activations = "expected_average_only_in", the trial "none"; its weights are for scaled activations, and by how much is not in its folder
    it does not measure latents by their decoder rows, which have different norms, and the trial has rescale_acts_by_decoder_norm = true: other latents would be the k largest
    "#);
}

#[test]
fn a_sweep_starts_from_an_exported_sae() {
    let sweep = TinySweep::new();
    sweep.expect(&["run", "sweep.toml"], 0);
    let trials: Vec<(String, PathBuf)> = sweep.trials().into_iter().collect();
    sweep.expect(&["export", &trials[0].0, "--to", "given"], 0);
    // So small a rate leaves what it started from.
    sweep.edit("lr = 1e-3", "lr = 1e-12");
    sweep.edit("d_sae = 48", "d_sae = 48\ninit_from = \"given\"");
    sweep.edit("l1_coefficient = [0.5, 2.0, 8.0]", "l1_coefficient = [3.0]");
    let (stdout, _) = sweep.expect(&["plan", "sweep.toml", "--format", "json"], 0);
    let plan: Value = serde_json::from_str(&stdout).unwrap();
    let id = plan["trials"][0]["id"].as_str().unwrap().to_owned();
    let (_, stderr) = sweep.expect(&["run", "sweep.toml", "--set", "sae.d_sae=40"], 2);
    assert!(stderr.contains("it is standard, 24 x 48") && stderr.contains("standard, 24 x 40"), "{stderr}");
    let (_, stderr) = sweep.expect(&["run", "sweep.toml", "--set", "sae.init_from=nowhere"], 2);
    assert!(stderr.contains("nowhere/cfg.json"), "{stderr}");
    assert!(!sweep.trials().contains_key(&id), "nothing was started");

    sweep.expect(&["run", "sweep.toml"], 0);
    let (started, source) =
        (json(&sweep.trials()[&id].join("result.json")), json(&trials[0].1.join("result.json")));
    assert_eq!(started["init_blake3"], weights_blake3(&sweep.path("given")).unwrap());
    assert!(source.get("init_blake3").is_none());
    for metric in ["ce_loss_score", "explained_variance", "l0", "mse"] {
        let [found, expected] = [&started, &source].map(|result| result["metrics"][metric].as_f64().unwrap());
        assert!((found - expected).abs() <= 1e-4 * expected.abs(), "{metric}: {found}, expected {expected}");
    }
    let (_, stderr) = sweep.expect(&["run", "sweep.toml"], 0);
    assert!(stderr.contains("1 trial, 1 ended before\n"), "{stderr}");

    // The same path with other weights: the trial is another one's result.
    sweep.expect(&["export", &trials[1].0, "--to", "given", "--force"], 0);
    let (_, stderr) = sweep.expect(&["run", "sweep.toml"], 0);
    assert!(
        stderr.contains(&format!("trial {id} runs anew: the weights it starts from are others now")),
        "{stderr}"
    );
    assert_ne!(json(&sweep.trials()[&id].join("result.json"))["init_blake3"], started["init_blake3"]);
    sweep.expect(&["export", &id, "--to", "fine-tuned"], 0);
    assert_eq!(json(&sweep.path("fine-tuned").join(RUNNER_FILE))["from_pretrained_path"], "given");
}

#[test]
fn every_architecture_is_started_from() {
    for (own, axis) in [
        ("architecture = \"matching_pursuit\"\nresidual_threshold = 0.4", "sae.max_iterations = [6]"),
        ("architecture = \"topk\"", "sae.k = [5]"),
        ("architecture = \"topk\"\nrescale_acts_by_decoder_norm = false", "sae.k = [5]"),
        ("architecture = \"abstopk\"", "sae.k = [5]"),
        ("architecture = \"batchtopk\"", "sae.k = [4.5]"),
        ("architecture = \"matryoshka_batchtopk\"\nmatryoshka_widths = [16, 48]", "sae.k = [5]"),
        ("architecture = \"jumprelu\"", "sae.l0_coefficient = [0.5]"),
        ("architecture = \"gated\"", "sae.l1_coefficient = [0.5]"),
    ] {
        let sweep = TinySweep::new();
        sweep.edit("d_sae = 48", &format!("d_sae = 48\n{own}"));
        sweep.edit("sae.l1_coefficient = [0.5, 2.0, 8.0]", axis);
        sweep.expect(&["run", "sweep.toml"], 0);
        let (id, folder) = sweep.trials().into_iter().next().unwrap();
        sweep.expect(&["export", &id, "--to", "given"], 0);
        sweep.edit("lr = 1e-3", "lr = 1e-12");
        let rate = if own.contains("batchtopk") { "\ntopk_threshold_lr = 1e-12" } else { "" };
        sweep.edit("d_sae = 48", &format!("d_sae = 48\ninit_from = \"given\"{rate}"));
        sweep.expect(&["run", "sweep.toml"], 0);
        let trials = sweep.trials();
        let started = trials.iter().find(|(other, _)| **other != id).unwrap().1;
        let [found, expected] = [started, &folder].map(|folder| json(&folder.join("result.json")));
        for metric in ["ce_loss_score", "explained_variance", "l0", "mse"] {
            let [found, expected] =
                [&found, &expected].map(|result| result["metrics"][metric].as_f64().unwrap());
            assert!(
                (found - expected).abs() <= 1e-4 * expected.abs(),
                "{own}: {metric}: {found}, expected {expected}"
            );
        }
        assert!(expected["metrics"]["l0"].as_f64().unwrap() > 0.5, "{own}: there is something to lose");
    }
}
