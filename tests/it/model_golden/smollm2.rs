//! A real model, where its file is at hand.

use std::path::PathBuf;

use candle_core::{Device, IndexOp, Tensor};
use saesweep::model::{Model, per_token_loss};
use serde_json::Value;

use super::fixture;

/// SmolLM2-135M-Instruct in Q4_1. Its file is 93 MB, so the test needs the path in `SAESWEEP_SMOLLM2_GGUF`; with
/// `SAESWEEP_SMOLLM2_TOKENIZER` it also tries the tokenizer.json of that path.
#[test]
fn smollm2_matches_transformers() {
    let Some(gguf) = std::env::var_os("SAESWEEP_SMOLLM2_GGUF").map(PathBuf::from) else {
        println!("skipped: SAESWEEP_SMOLLM2_GGUF is not set");
        return;
    };
    let golden: Value =
        serde_json::from_str(&std::fs::read_to_string(fixture("smollm2-golden.json")).unwrap()).unwrap();
    let model = Model::load(&gguf).unwrap();
    let mut tokenizers = vec![model.tokenizer().unwrap().clone()];
    if let Some(tokenizer) = std::env::var_os("SAESWEEP_SMOLLM2_TOKENIZER") {
        let temp = tempfile::tempdir().unwrap();
        std::fs::copy(&gguf, temp.path().join("m.gguf")).unwrap();
        std::fs::copy(tokenizer, temp.path().join("tokenizer.json")).unwrap();
        tokenizers.push(Model::load(&temp.path().join("m.gguf")).unwrap().tokenizer().unwrap().clone());
    }
    let floats = |value: &Value| -> Vec<f64> { serde_json::from_value(value.clone()).unwrap() };
    let ids = |value: &Value| -> Vec<u32> { serde_json::from_value(value.clone()).unwrap() };
    let input = |ids: &[u32]| Tensor::new(ids, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let (mut worst_norm, mut worst_act, mut worst_logit, mut worst_loss) = (0f64, 0f64, 0f64, 0f64);
    for case in golden["cases"].as_array().unwrap() {
        let tokens = ids(&case["tokens"]);
        for tokenizer in &tokenizers {
            assert_eq!(tokenizer.encode(case["text"].as_str().unwrap()).unwrap(), tokens);
        }
        let norms = case["resid_post_norm_per_position"].as_object().unwrap();
        let hooks: Vec<_> = norms.keys().map(|name| model.config().hook(name).unwrap()).collect();
        let (acts, logits) = model.run_with_hooks(&input(&tokens), &hooks).unwrap();
        for (name, truth) in norms {
            let acts = acts[name].squeeze(0).unwrap().to_vec2::<f32>().unwrap();
            for (row, truth) in acts.iter().zip(floats(truth)) {
                let norm = row.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
                worst_norm = worst_norm.max((norm - truth).abs() / truth);
            }
            let last = acts.last().unwrap();
            let norm = floats(truth).last().copied().unwrap();
            for (got, truth) in last.iter().zip(floats(&case["resid_post_first8_last_position"][name])) {
                worst_act = worst_act.max((f64::from(*got) - truth).abs() / norm);
            }
        }
        let last = logits.i((0, tokens.len() - 1)).unwrap().to_vec1::<f32>().unwrap();
        for pair in case["last_logits_top8"].as_array().unwrap() {
            let (token, truth) = (pair[0].as_u64().unwrap() as usize, pair[1].as_f64().unwrap());
            worst_logit = worst_logit.max((f64::from(last[token]) - truth).abs());
        }
        let loss = per_token_loss(&logits, &input(&tokens))
            .unwrap()
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap();
        for (loss, truth) in loss.iter().zip(floats(&case["token_log_probs"])) {
            worst_loss = worst_loss.max((f64::from(-loss) - truth).abs());
        }
        let mut text = tokens.clone();
        for _ in 0..20 {
            let logits = model.forward(&input(&text)).unwrap().i((0, text.len() - 1)).unwrap();
            text.push(logits.argmax(0).unwrap().to_scalar::<u32>().unwrap());
        }
        let greedy = &text[tokens.len()..];
        assert_eq!(greedy, ids(&case["greedy_20"]));
        assert_eq!(tokenizers[0].decode(greedy, true).unwrap(), case["greedy_text"].as_str().unwrap());
    }
    println!(
        "worst: residual norm {worst_norm:.1e} relative, activation {worst_act:.1e} of its norm, logit \
         {worst_logit:.1e}, log-probability {worst_loss:.1e}"
    );
    assert!(worst_norm < 1e-4 && worst_act < 1e-4 && worst_logit < 2e-3 && worst_loss < 2e-3);
}

/// Tokens a second of harvesting; run it with `--ignored --nocapture`, and RAYON_NUM_THREADS for the threads.
#[test]
#[ignore = "measures, and needs the file named by SAESWEEP_SMOLLM2_GGUF"]
fn smollm2_harvest_speed() {
    let gguf = std::env::var_os("SAESWEEP_SMOLLM2_GGUF").map(PathBuf::from).unwrap();
    let model = Model::load(&gguf).unwrap();
    let hook = model.config().hook("blocks.15.hook_resid_post").unwrap();
    for (n_sequences, positions) in [(4, 128), (16, 128), (32, 128), (2, 512), (8, 512)] {
        let ids: Vec<u32> = (0..n_sequences * positions).map(|i| (i * 7919 % 49152) as u32).collect();
        let tokens = Tensor::from_vec(ids, (n_sequences, positions), &Device::Cpu).unwrap();
        let best = (0..4).map(|_| {
            let start = std::time::Instant::now();
            model.run_to_hook(&tokens, &hook).unwrap();
            start.elapsed().as_secs_f64()
        });
        let best = best.fold(f64::INFINITY, f64::min);
        println!("{n_sequences} x {positions}: {:.0} tokens/s", (n_sequences * positions) as f64 / best);
    }
}
