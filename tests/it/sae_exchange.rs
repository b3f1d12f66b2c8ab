//! SAEs going out to other programs and coming in from them.

mod export;
mod given;
mod start;

use super::small_sae::noise;
use saesweep::{
    kernels::Params,
    sae::SaveInfo,
    spec::{self, SpecSource},
    trial::{Architecture, SaeConfig, TrialConfig, TrialId},
};
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::Path};

/// A trial with these settings of `[sae]`.
fn config(sae: &str) -> TrialConfig {
    let text = format!(
        "[sweep]\nname = \"one\"\n[model]\nname = \"org/model\"\nhook = \"blocks.3.hook_mlp_out\"\n\
         [data]\ndataset = \"org/data\"\n[train]\ntokens = 100_000\nlr_decay_steps = 4\n[sae]\n{sae}\n"
    );
    let source = SpecSource { path: "one.toml".to_owned(), text, ..SpecSource::default() };
    let mut plan = spec::load(&source).unwrap_or_else(|errors| panic!("{errors}"));
    plan.trials.remove(0).config
}

/// Weights of an SAE with these settings.
fn random_params(cfg: &SaeConfig, d_in: usize, seed: u64) -> Params {
    let d_sae = cfg.d_sae;
    let thresholds = || noise(d_sae, seed + 4, 0.3).iter().map(|x| x.abs()).collect();
    let is_gated = matches!(cfg.architecture, Architecture::Gated { .. });
    Params {
        threshold: match cfg.architecture {
            Architecture::JumpRelu { .. } => thresholds(),
            _ => Vec::new(),
        },
        r_mag: if is_gated { noise(d_sae, seed + 5, 0.4) } else { Vec::new() },
        b_mag: if is_gated { noise(d_sae, seed + 6, 0.4) } else { Vec::new() },
        w_enc: noise(d_sae * d_in, seed, 0.5),
        w_dec: noise(d_sae * d_in, seed + 1, 0.5),
        b_enc: noise(d_sae, seed + 2, 0.5),
        b_dec: noise(d_in, seed + 3, 0.5),
    }
}

/// The largest difference, of the largest value.
fn deviation(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().chain(expected).all(|value| value.is_finite()));
    let largest = expected.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0_f32, f32::max) / largest
}

fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    let off = deviation(found, expected);
    assert!(off <= tolerance, "{what}: off by {off:.1e} of the largest");
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for name in names(from) {
        fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = json(path);
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// What is saved beside an SAE.
fn info(config: TrialConfig, metrics: BTreeMap<String, f64>) -> SaveInfo {
    SaveInfo {
        trial: TrialId("0123456789ab".to_owned()),
        store_key: "0123456789abcdef".to_owned(),
        config,
        l0: None,
        num_dead_features: None,
        metrics,
    }
}
