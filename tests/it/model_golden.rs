//! The hooked transformer against TransformerLens and transformers on tiny random models of every family, against
//! candle's own models, and against the numbers of a real model where its file is at hand.

mod folder;
mod gguf;
mod smollm2;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, IndexOp, Tensor, safetensors};
use candle_nn::VarBuilder;
use saesweep::model::{Model, ModelError, per_token_kl, per_token_loss};
use serde_json::{Value, json};

const FAMILIES: [&str; 4] = ["gpt_neo", "llama", "llama3_sharded", "qwen2"];

fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/model")).join(name)
}

fn golden(name: &str) -> HashMap<String, Tensor> {
    safetensors::load(fixture(name).join("golden.safetensors"), &Device::Cpu).unwrap()
}

fn tokens_of(golden: &HashMap<String, Tensor>) -> Tensor {
    golden["tokens"].to_dtype(DType::U32).unwrap()
}

/// The norm of the difference relative to the norm of the truth.
fn deviation(got: &Tensor, truth: &Tensor) -> f64 {
    assert_eq!(got.dims(), truth.dims());
    let norm = |t: &Tensor| f64::from(t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()).sqrt();
    norm(&(got - truth).unwrap()) / norm(truth)
}

fn all_hooks(model: &Model) -> Vec<saesweep::model::HookPoint> {
    model.config().hook_names().iter().map(|name| model.config().hook(name).unwrap()).collect()
}

#[test]
fn every_hook_the_logits_and_the_loss_match_transformer_lens() {
    for name in FAMILIES {
        let (model, golden) = (Model::load(&fixture(name)).unwrap(), golden(name));
        let tokens = tokens_of(&golden);
        let (acts, logits) = model.run_with_hooks(&tokens, &all_hooks(&model)).unwrap();
        let mut worst = BTreeMap::new();
        for (hook, got) in &acts {
            worst.insert(hook.as_str(), deviation(got, &golden[hook]));
        }
        worst.insert("logits", deviation(&logits, &golden["logits"]));
        worst.insert("loss", deviation(&per_token_loss(&logits, &tokens).unwrap(), &golden["loss"]));
        let (hook, largest) = worst.iter().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
        println!("{name}: {} hooks, worst {hook} {largest:.1e}", acts.len());
        assert_eq!(golden.keys().filter(|key| !key.contains("halved")).count(), acts.len() + 3);
        assert!(*largest < 1e-5, "{name}: {hook} {largest:e}");
    }
}

#[test]
fn a_run_stops_at_a_hook_and_goes_on_from_it_to_the_same_bits() {
    for name in FAMILIES {
        let model = Model::load(&fixture(name)).unwrap();
        let tokens = tokens_of(&golden(name));
        let (acts, logits) = model.run_with_hooks(&tokens, &all_hooks(&model)).unwrap();
        let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(bits(&model.forward(&tokens).unwrap()), bits(&logits));
        for hook in all_hooks(&model) {
            let state = model.run_to_hook(&tokens, &hook).unwrap();
            assert_eq!(bits(&state.acts), bits(&acts[&hook.name()]), "{name} {hook}");
            assert_eq!(state.acts.dim(2).unwrap(), model.config().hook_width(&hook));
            assert_eq!(bits(&model.run_from_hook(&state, &hook).unwrap()), bits(&logits), "{name} {hook}");
        }
    }
}

#[test]
fn what_is_loaded_from_a_hook_on_gives_the_same_bits_and_nothing_before_it() {
    for name in FAMILIES {
        let model = Model::load(&fixture(name)).unwrap();
        let tokens = tokens_of(&golden(name));
        let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let logits = model.forward(&tokens).unwrap();
        let hooks = all_hooks(&model);
        for (nth, hook) in hooks.iter().enumerate() {
            let part = Model::load_from(&fixture(name), hook).unwrap();
            let mut state = model.run_to_hook(&tokens, hook).unwrap();
            assert_eq!(bits(&part.run_from_hook(&state, hook).unwrap()), bits(&logits), "{name} {hook}");
            let last = hooks.last().unwrap();
            let end = model.run_to_hook(&tokens, last).unwrap();
            assert_eq!(bits(&part.run_from_hook(&end, last).unwrap()), bits(&logits), "{name} {hook}");
            if nth > 0 {
                let before = model.run_to_hook(&tokens, &hooks[nth - 1]).unwrap();
                for message in [
                    part.run_from_hook(&before, &hooks[nth - 1]).unwrap_err().to_string(),
                    part.forward(&tokens).unwrap_err().to_string(),
                ] {
                    assert!(message.contains(&format!("loaded from `{hook}` on")), "{message}");
                }
            }

            let clean = state.clone();
            state.acts = (state.acts * 0.5).unwrap();
            let comparison = part.compare_from_hook(&clean, &state, hook, &tokens).unwrap();
            let halved = model.run_from_hook(&state, hook).unwrap();
            assert_eq!(comparison.loss, bits(&per_token_loss(&halved, &tokens).unwrap()), "{name} {hook}");
            assert_eq!(comparison.kl, bits(&per_token_kl(&logits, &halved).unwrap()), "{name} {hook}");
        }
        let last = hooks.last().unwrap();
        let part = Model::load_from(&fixture(name), last).unwrap();
        assert!(part.tokenizer().is_none());
        let end = model.run_to_hook(&tokens, last).unwrap();
        let short = tokens.narrow(1, 0, 2).unwrap();
        let message = part.compare_from_hook(&end, &end, last, &short).unwrap_err().to_string();
        assert!(message.contains("as the states have"), "{message}");
    }
}

#[test]
fn replaced_activations_have_the_effect_that_they_have_in_transformer_lens() {
    for name in FAMILIES {
        let (model, golden) = (Model::load(&fixture(name)).unwrap(), golden(name));
        let tokens = tokens_of(&golden);
        let mut checked = 0;
        for hook in all_hooks(&model) {
            let Some(truth) = golden.get(&format!("halved.{hook}")) else { continue };
            let mut state = model.run_to_hook(&tokens, &hook).unwrap();
            state.acts = (state.acts * 0.5).unwrap();
            let logits = model.run_from_hook(&state, &hook).unwrap();
            let last = logits.i((0, logits.dim(1).unwrap() - 4..)).unwrap();
            let off = deviation(&last, truth);
            assert!(off < 1e-5, "{name} {hook}: {off:e}");
            checked += 1;
        }
        assert_eq!(checked, 10, "{name}");
    }
}

#[test]
fn candles_own_models_agree() {
    let weights = |name: &str| {
        let tensors = safetensors::load(fixture(name).join("model.safetensors"), &Device::Cpu).unwrap();
        VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu)
    };
    let config = |name: &str| -> Value {
        serde_json::from_str(&std::fs::read_to_string(fixture(name).join("config.json")).unwrap()).unwrap()
    };
    // Both give the logits of the last position only.
    let check = |name: &str, run: &mut dyn FnMut(&Tensor) -> Tensor| {
        let model = Model::load(&fixture(name)).unwrap();
        let tokens = tokens_of(&golden(name));
        for length in [1, 7, tokens.dim(1).unwrap()] {
            let tokens = tokens.i((.., ..length)).unwrap().contiguous().unwrap();
            let ours = model.forward(&tokens).unwrap().i((.., length - 1)).unwrap();
            let off = deviation(&ours, &run(&tokens).reshape(ours.shape()).unwrap());
            assert!(off < 1e-5, "{name} {length}: {off:e}");
        }
    };
    {
        use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};
        let cfg: LlamaConfig = serde_json::from_value(config("llama")).unwrap();
        let cfg = cfg.into_config(false);
        let llama = Llama::load(weights("llama"), &cfg).unwrap();
        check("llama", &mut |tokens| {
            let mut cache = Cache::new(false, DType::F32, &cfg, &Device::Cpu).unwrap();
            llama.forward(tokens, 0, &mut cache).unwrap()
        });
    }
    {
        use candle_transformers::models::qwen2::{Config, ModelForCausalLM};
        let mut json = config("qwen2");
        json["rope_theta"] = json!(1e6);
        json["sliding_window"] = json!(64);
        let cfg: Config = serde_json::from_value(json).unwrap();
        let mut qwen = ModelForCausalLM::new(&cfg, weights("qwen2")).unwrap();
        check("qwen2", &mut |tokens| {
            qwen.clear_kv_cache();
            qwen.forward(tokens, 0).unwrap()
        });
    }
}

#[test]
fn tokens_match_the_tokenizers_library_of_python() {
    for name in FAMILIES {
        let model = Model::load(&fixture(name)).unwrap();
        check_tokenizer(model.tokenizer().unwrap(), name);
    }
    let ids = |name: &str| {
        let model = Model::load(&fixture(name)).unwrap();
        let tokenizer = model.tokenizer().unwrap();
        (
            tokenizer.bos_id(),
            tokenizer.eos_id(),
            tokenizer.pad_id(),
            tokenizer.sep_id(),
            tokenizer.special_ids().len(),
        )
    };
    assert_eq!(ids("gpt_neo"), (Some(0), Some(1), Some(1), None, 2));
    assert_eq!(ids("llama"), (Some(0), Some(1), Some(2), None, 3));
    // A tokenizer without a beginning takes the end for it.
    assert_eq!(ids("qwen2"), (Some(1), Some(1), Some(1), None, 1));
}

fn check_tokenizer(tokenizer: &saesweep::model::ModelTokenizer, name: &str) {
    let cases = std::fs::read_to_string(fixture(name).join("tokens.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&cases).unwrap();
    assert_eq!(tokenizer.vocab_size(), 96);
    for case in &cases {
        let text = case["text"].as_str().unwrap();
        let ids: Vec<u32> = serde_json::from_value(case["tokens"].clone()).unwrap();
        assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), case["decoded"].as_str().unwrap());
        assert_eq!(tokenizer.decode(&ids, true).unwrap(), case["decoded_plain"].as_str().unwrap());
    }
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    let model = Model::load(&fixture("gpt_neo")).unwrap();
    let hook = model.config().hook("blocks.1.hook_mlp_out").unwrap();
    let fails = |tokens: &Tensor, part: &str| {
        let message = model.run_to_hook(tokens, &hook).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    };
    let tokens = |list: &[u32]| Tensor::new(list, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    fails(&tokens(&[1, 96]), "token 96 is outside the model's vocabulary of 96");
    fails(&tokens(&[0; 21]), "a sequence of 21 tokens does not fit the model, which takes 1 to 20");
    fails(&tokens(&[]), "a sequence of 0 tokens");
    fails(&tokens(&[1, 2]).squeeze(0).unwrap(), "has shape [2]");
    fails(&tokens(&[1, 2]).to_dtype(DType::F32).unwrap(), "of u32");

    let state = model.run_to_hook(&tokens(&[1, 2, 3]), &hook).unwrap();
    let mut narrow = state.clone();
    narrow.acts = narrow.acts.narrow(2, 0, 5).unwrap();
    let message = model.run_from_hook(&narrow, &hook).unwrap_err().to_string();
    assert!(message.contains("blocks.1.hook_mlp_out has shape [1, 3, 5]"), "{message}");
    let mut bare = state;
    bare.carry.clear();
    assert!(matches!(model.run_from_hook(&bare, &hook), Err(ModelError::InputShape { .. })));

    let deeper = hook;
    let shallow = Model::load(&fixture("llama")).unwrap();
    let last = model.config().hook("blocks.2.hook_resid_post").unwrap();
    assert!(shallow.run_to_hook(&tokens(&[1]), &deeper).is_ok());
    assert!(matches!(shallow.run_to_hook(&tokens(&[1]), &last), Err(ModelError::UnknownHook { .. })));
}
