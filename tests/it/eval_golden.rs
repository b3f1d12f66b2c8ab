//! The evaluation finds what SAELens' own `run_evals` finds on the same model, sequences and SAE, the whole
//! way from a file of tokens through the store.

use super::small_trial::{data_of, model_of, small_trial};
use saesweep::{
    eval::{Evaluation, evaluate},
    harvest::ensure_store,
    kernels::Pool,
    metric::{METRICS, Needs},
    sae::{self, Sae},
    store::Store,
    trial::{EvalConfig, TrialConfig},
};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    ops::ControlFlow,
    path::{Path, PathBuf},
};

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

/// Metrics of ours that have no counterpart in `run_evals`, or come from training.
const NOT_SAELENS: [&str; 3] = ["dead_share", "dense_share", "train_loss"];

#[derive(Deserialize)]
struct Golden {
    model: String,
    hook: String,
    context_size: usize,
    all_tokens: Expected,
    without_special_tokens: Expected,
}

#[derive(Deserialize)]
struct Expected {
    metrics: BTreeMap<String, f64>,
    dense_share: f64,
    log10_density: Vec<u64>,
}

struct Case {
    golden: Golden,
    model: PathBuf,
    sae: Sae,
    store: Store,
    _folder: tempfile::TempDir,
}

fn config(golden: &Golden, sae: &Sae) -> TrialConfig {
    let mut config = small_trial();
    let model = model_of(&mut config);
    (model.name, model.hook) = (golden.model.clone(), golden.hook.clone());
    let data = data_of(&mut config);
    data.context_size = golden.context_size;
    (data.eval_fraction, data.eval_max_tokens) = (0.75, 100_000);
    config.store.tokens = 100_000;
    config.sae = sae.cfg.clone();
    config
}

fn case(name: &str) -> Case {
    let fixture = Path::new(FIXTURES).join("eval").join(name);
    let text = std::fs::read_to_string(fixture.join("golden.json")).unwrap();
    let golden: Golden = serde_json::from_str(&text).unwrap();
    let sae = sae::load(&fixture).unwrap();
    let config = config(&golden, &sae);
    let model = Path::new(FIXTURES).join("model").join(&golden.model);
    let folder = tempfile::tempdir().unwrap();
    let (key, _) =
        ensure_store(folder.path(), &model, &[fixture.join("sequences.jsonl")], &config, &mut |_| {
            ControlFlow::Continue(())
        })
        .unwrap();
    let store = Store::open(folder.path(), &key).unwrap();
    Case { golden, model, sae, store, _folder: folder }
}

impl Case {
    fn evaluate(&self, exclude_special_tokens: bool, threads: usize) -> Evaluation {
        let settings = EvalConfig { exclude_special_tokens };
        evaluate(Some(&self.model), &self.store, &self.sae, &settings, &Pool::new(threads)).unwrap()
    }
}

fn check(name: &str) {
    let case = case(name);
    assert_eq!(case.store.eval().unwrap().sequences, 96, "three batches of 32");
    for (exclude, expected) in [(false, &case.golden.all_tokens), (true, &case.golden.without_special_tokens)]
    {
        let found = case.evaluate(exclude, 1);
        let compared = METRICS
            .iter()
            .filter(|metric| metric.needs != Needs::Truth)
            .map(|metric| metric.name)
            .filter(|name| !NOT_SAELENS.contains(name));
        for metric in compared {
            let (found, expected) = (found.metrics[metric], expected.metrics[metric]);
            let off = (found - expected).abs() / expected.abs();
            println!(
                "{name}, exclude {exclude}: {metric} {found:.7} expected {expected:.7}, off by {off:.1e}"
            );
            assert!(off < 2e-5, "{name}, exclude {exclude}: {metric} is {found}, expected {expected}");
        }
        assert_eq!(found.metrics["dense_share"], expected.dense_share);
        assert_eq!(found.log10_density, expected.log10_density);
        assert_eq!(case.evaluate(exclude, 2), found, "threads change nothing");
    }
}

#[test]
fn agrees_with_saelens_where_the_model_carries_a_residual() {
    check("neo_mlp_out");
}

/// Sequences of 40 tokens: what is in memory at once is less than a batch.
#[test]
fn agrees_with_saelens_on_a_residual_stream() {
    check("llama_resid_post");
}

#[test]
fn agrees_with_saelens_on_attention_heads_with_scaled_rows_and_topk() {
    check("neo_z_topk");
}
