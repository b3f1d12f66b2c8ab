//! Made-up runs for tests, with numbers as SAEs on a small language model give them. The integration tests
//! compile this file too, so it takes what it needs from its parent module.

use super::{CurvePoint, Goal, HostInfo, Objective, Outcome, RunData, StoreLine, TrialId, TrialRow};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// 4 × 4 trials over L1 coefficient and learning rate; one diverged, one failed.
pub(crate) fn grid_run() -> RunData {
    let mut run = empty_run("tinystories-mlp-out", &["sae.l1_coefficient", "train.lr"]);
    for l1 in [1.0, 2.0, 5.0, 10.0] {
        for lr in [1e-5, 5e-5, 2e-4, 1e-3] {
            let index = run.trials.len();
            run.trials.push(trial(index, Choice { l1, lr, d_sae: 16384, seed: 42, topk: false }));
        }
    }
    diverge(&mut run.trials[15]);
    fail(&mut run.trials[7]);
    run
}

/// 3 × 2 trials over L1 coefficient and learning rate, three seeds each.
pub(crate) fn repeats_run() -> RunData {
    let mut run = empty_run("repeats", &["sae.l1_coefficient", "train.lr", "train.seed"]);
    for l1 in [2.0, 5.0, 10.0] {
        for lr in [5e-5, 2e-4] {
            for seed in [42, 43, 44] {
                let index = run.trials.len();
                run.trials.push(trial(index, Choice { l1, lr, d_sae: 8192, seed, topk: false }));
            }
        }
    }
    run
}

/// `n` trials drawn over learning rate, sparsity, width and architecture.
pub(crate) fn random_run(n: usize) -> RunData {
    let mut run =
        empty_run("random", &["sae.architecture", "sae.d_sae", "sae.l1_coefficient", "sae.k", "train.lr"]);
    run.strategy = "random".to_owned();
    for index in 0..n {
        let draw = |salt: u64| noise(index as u64 * 7 + salt);
        let choice = Choice {
            l1: 0.7 * 20f64.powf(draw(1)),
            lr: 1e-5 * 150f64.powf(draw(2)),
            d_sae: [4096, 8192, 16384][(draw(3) * 3.0) as usize],
            seed: 42,
            topk: draw(4) < 0.4,
        };
        run.trials.push(trial(index, choice));
        if choice.lr > 9e-4 && draw(5) < 0.5 {
            diverge(&mut run.trials[index]);
        }
    }
    run
}

/// Toy data with 8 true features in a row: standard and TopK at five sparsities, two learning rates and two seeds.
pub(crate) fn toy_run() -> RunData {
    let keys = ["sae.architecture", "sae.l1_coefficient", "sae.k", "train.lr", "train.seed"];
    let mut run = empty_run("toy", &keys);
    run.objective.metric = "recovered_share".to_owned();
    for topk in [false, true] {
        for l1 in [90.0, 45.0, 22.5, 12.0, 6.0] {
            for (lr, seed) in [(3e-3, 42), (3e-3, 43), (1e-2, 42), (1e-2, 43)] {
                let index = run.trials.len();
                let mut trial = trial(index, Choice { l1, lr, d_sae: 64, seed, topk });
                let l0 = 180.0 / l1;
                let share =
                    (1.0 - (l0 / 8.0_f64).ln().powi(2)).max(0.0) - 5.0 * lr - 0.002 * (seed - 42) as f64;
                for name in
                    ["ce_loss_score", "ce_loss_with_sae", "ce_loss_with_ablation", "ce_loss_without_sae"]
                {
                    trial.metrics.remove(name);
                }
                let known =
                    [("l0", l0), ("true_l0", 8.0), ("recovered_share", share), ("mmcs", 0.5 + 0.5 * share)];
                trial.metrics.extend(known.map(|(name, value)| (name.to_owned(), value)));
                trial.metrics.insert("uniqueness".to_owned(), 0.9);
                run.trials.push(trial);
            }
        }
    }
    run
}

fn empty_run(name: &str, varied_keys: &[&str]) -> RunData {
    RunData {
        name: name.to_owned(),
        folder: format!("results/{name}"),
        strategy: "grid".to_owned(),
        objective: Objective { metric: "ce_loss_score".to_owned(), goal: Goal::Maximize },
        top: 10,
        varied_keys: varied_keys.iter().map(|&key| key.to_owned()).collect(),
        notes: Vec::new(),
        trials: Vec::new(),
        stores: vec![StoreLine {
            key: "6b1f03c2a9d87e45".to_owned(),
            model: "roneneldan/TinyStories-1Layer-21M".to_owned(),
            hook: "blocks.0.hook_mlp_out".to_owned(),
            dataset: "roneneldan/TinyStories".to_owned(),
            rows: 2_000_000,
            width: 1024,
            context_size: 512,
            dtype: "float16".to_owned(),
            bytes: 4_211_081_216,
        }],
        host: HostInfo {
            cpu: "AMD EPYC 9B14".to_owned(),
            cores: 2,
            isa: "avx512".to_owned(),
            os: "Linux 6.6 x86_64".to_owned(),
            saesweep: "0.1.0".to_owned(),
        },
    }
}

#[derive(Clone, Copy)]
struct Choice {
    l1: f64,
    lr: f64,
    d_sae: u64,
    seed: u64,
    topk: bool,
}

/// A number in [0, 1) that depends on `salt` alone.
fn noise(salt: u64) -> f64 {
    let mut x = salt.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

fn trial(index: usize, choice: Choice) -> TrialRow {
    let Choice { l1, lr, d_sae, seed, topk } = choice;
    let jitter = |salt: u64| 2.0 * noise(index as u64 * 100 + salt + 17 * seed) - 1.0;
    let mistuned = (lr / 2.2e-4).log10().powi(2);
    let wide = (d_sae as f64 / 16384.0).log2();
    let k = (180.0 / l1).round();
    let l0 = if topk { k } else { 330.0 / l1.powf(1.05) * (5e-5 / lr).powf(0.16) * (1.0 + 0.03 * jitter(1)) };
    let ce = 1.0 - 0.62 * l0.powf(-0.62) * (1.0 + 0.3 * mistuned - 0.05 * wide - 0.1 * f64::from(topk))
        + 0.0008 * jitter(2);
    let ev = 1.0 - 1.25 * l0.powf(-0.4) * (1.0 + 0.18 * mistuned - 0.03 * wide) + 0.001 * jitter(3);
    let dead = (0.02 + 0.5 * (lr / 1e-3).powf(1.3) + 0.012 * l1 + 0.01 * jitter(4)).clamp(0.0, 0.95);
    let (clean, ablated) = (1.7312, 4.2046);
    let metrics = [
        ("l0", l0),
        ("ce_loss_score", ce),
        ("explained_variance", ev),
        ("explained_variance_legacy", ev - 0.013),
        ("mse", 310.0 * (1.0 - ev)),
        ("cossim", 0.5 + 0.5 * ev),
        ("l1", 0.9 * l0),
        ("l2_ratio", 0.93 + 0.05 * ev),
        ("ce_loss_without_sae", clean),
        ("ce_loss_with_sae", ablated - ce * (ablated - clean)),
        ("ce_loss_with_ablation", ablated),
        ("dead_share", dead),
        ("dense_share", 0.0004 * l0.sqrt()),
        ("train_loss", 330.0 * (1.0 - ev) + 12.0 * l1),
    ];
    let mut settings: BTreeMap<String, Value> = [
        ("model.name", json!("roneneldan/TinyStories-1Layer-21M")),
        ("model.hook", json!("blocks.0.hook_mlp_out")),
        ("data.context_size", json!(512)),
        ("sae.architecture", json!(if topk { "topk" } else { "standard" })),
        ("sae.apply_b_dec_to_input", json!(false)),
        ("sae.d_sae", json!(d_sae)),
        ("train.batch_size", json!(1024)),
        ("train.dead_feature_window", json!(1000)),
        ("train.lr", json!(lr)),
        ("train.seed", json!(seed)),
        ("train.tokens", json!(10_240_000)),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect();
    if topk {
        settings.insert("sae.k".to_owned(), json!(k as u64));
    } else {
        settings.insert("sae.l1_coefficient".to_owned(), json!(l1));
    }
    let id = format!("{:012x}", (noise(index as u64 + 1_000 * seed) * 2f64.powi(48)) as u64);
    TrialRow {
        snippet: format!(
            "[sae]\nd_sae = {d_sae}\nl1_coefficient = {l1:?}\n\n[train]\nlr = {lr:e}\nseed = {seed}\n"
        ),
        id: TrialId(id),
        index,
        settings,
        outcome: Outcome::Done,
        reason: None,
        metrics: metrics.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        log10_density: density(d_sae as f64, l0, dead),
        steps: 10_000,
        attempts: 1,
        secs: Some(612.0 + 40.0 * jitter(5)),
        tokens_per_sec: Some(17_100.0 + 900.0 * jitter(6)),
        slot: Some(format!("cpu:{}", index % 2)),
        log_tail: Vec::new(),
        curve: (1..=100).map(|i| curve_point(i * 100, l0, ev, l1, dead * d_sae as f64, lr, index)).collect(),
    }
}

/// A hump around the density that the L0 implies, and the dead in the first bin.
fn density(d_sae: f64, l0: f64, dead: f64) -> Vec<u64> {
    let centre = (l0 / d_sae).log10() - 0.35;
    let weight = |i: usize| {
        let x = (f64::from(i as u32) + 0.5) * 0.5 - 10.0 - centre;
        (-x * x / if x > 0.0 { 0.35 } else { 1.1 }).exp()
    };
    let total: f64 = (0..20).map(weight).sum();
    let mut bins: Vec<u64> =
        (0..20).map(|i| (weight(i) / total * d_sae * (1.0 - dead)).round() as u64).collect();
    bins[0] += (d_sae * dead).round() as u64;
    bins
}

fn curve_point(step: u64, l0: f64, ev: f64, l1: f64, dead: f64, lr: f64, index: usize) -> CurvePoint {
    let t = step as f64 / 10_000.0;
    let settled = 1.0 - (-t * 9.0 * (lr / 5e-5).powf(0.3)).exp();
    let ripple = 1.0 + 0.02 * (2.0 * noise(step + 31 * index as u64) - 1.0);
    let explained = ev * settled;
    let mse = 330.0 * (1.0 - explained) * ripple;
    let values = [
        ("losses/overall_loss", mse + 12.0 * l1 * t.min(0.1) * 10.0),
        ("losses/mse_loss", mse),
        ("losses/l1_loss", 12.0 * l1 * t.min(0.1) * 10.0),
        ("metrics/explained_variance", explained),
        ("metrics/l0", (l0 + 5_200.0 * (-t * 22.0).exp()) * ripple),
        ("sparsity/dead_features", dead * (t - 0.1).max(0.0) / 0.9),
    ];
    CurvePoint { step, values: values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect() }
}

fn diverge(trial: &mut TrialRow) {
    trial.outcome = Outcome::Diverged;
    trial.reason = Some("the loss became NaN at step 1834".to_owned());
    trial.metrics.clear();
    trial.log10_density.clear();
    trial.steps = 1834;
    trial.snippet = String::new();
    trial.curve.truncate(18);
    for (i, point) in trial.curve.iter_mut().enumerate().skip(12) {
        let grown = 1.9f64.powi(i as i32 - 11);
        for name in ["losses/overall_loss", "losses/mse_loss"] {
            point.values.entry(name.to_owned()).and_modify(|loss| *loss *= grown);
        }
    }
    trial.log_tail = vec![
        "step 1800: loss 4.1e4, L0 2210".to_owned(),
        "step 1834: loss NaN".to_owned(),
        "diverged at step 1834".to_owned(),
    ];
}

fn fail(trial: &mut TrialRow) {
    trial.outcome = Outcome::Failed;
    trial.reason = Some("killed by signal 9, 2 attempts".to_owned());
    trial.metrics.clear();
    trial.log10_density.clear();
    trial.steps = 412;
    trial.attempts = 2;
    trial.secs = None;
    trial.tokens_per_sec = None;
    trial.snippet = String::new();
    trial.curve.truncate(4);
    trial.log_tail = (0..40).map(|i| format!("step {}: loss 310.{i}, L0 1800", 10 * i)).collect();
    trial.log_tail.push("memory allocation of 67108864 bytes failed".to_owned());
}
