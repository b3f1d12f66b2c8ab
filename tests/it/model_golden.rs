//! The hooked transformer against TransformerLens and transformers on tiny random models of every family, and
//! against candle's own models; what it refuses.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, IndexOp, Tensor, safetensors};
use candle_nn::VarBuilder;
use saesweep::model::{Model, ModelError, model_files, per_token_loss};
use serde_json::{Value, json};

const FAMILIES: [&str; 4] = ["gpt_neo", "llama", "llama3_sharded", "qwen2"];

pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/model")).join(name)
}

pub(crate) fn golden(name: &str) -> HashMap<String, Tensor> {
    safetensors::load(fixture(name).join("golden.safetensors"), &Device::Cpu).unwrap()
}

pub(crate) fn tokens_of(golden: &HashMap<String, Tensor>) -> Tensor {
    golden["tokens"].to_dtype(DType::U32).unwrap()
}

/// The norm of the difference relative to the norm of the truth.
pub(crate) fn deviation(got: &Tensor, truth: &Tensor) -> f64 {
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
        assert_eq!(checked, 9, "{name}");
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

pub(crate) fn check_tokenizer(tokenizer: &saesweep::model::ModelTokenizer, name: &str) {
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

/// A copy of a fixture that can be spoiled.
fn copy(name: &str, to: &Path) -> PathBuf {
    let folder = to.join(name);
    std::fs::create_dir(&folder).unwrap();
    for file in std::fs::read_dir(fixture(name)).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), folder.join(file.file_name())).unwrap();
    }
    folder
}

#[test]
fn what_is_missing_or_wrong_in_a_folder_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let fails = |path: &Path, parts: &[&str]| {
        let message = Model::load(path).err().unwrap().to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    };
    fails(&temp.path().join("nowhere"), &["nowhere", "config.json", ".gguf"]);
    fails(temp.path(), &["lacks config.json"]);

    let llama = copy("llama", temp.path());
    let weights = llama.join("model.safetensors");
    let tensors = safetensors::load(&weights, &Device::Cpu).unwrap();
    let save = |change: &dyn Fn(&mut HashMap<String, Tensor>)| {
        let mut tensors = tensors.clone();
        change(&mut tensors);
        safetensors::save(&tensors, &weights).unwrap();
    };
    save(&|tensors| {
        tensors.remove("model.norm.weight").unwrap();
        tensors.remove("model.layers.1.mlp.up_proj.weight").unwrap();
    });
    fails(&llama, &["lack 2 tensor(s)", "`model.layers.1.mlp.up_proj.weight`, `model.norm.weight`"]);
    save(&|tensors| {
        let weight = tensors["model.norm.weight"].i(..31).unwrap();
        tensors.insert("model.norm.weight".to_owned(), weight);
    });
    fails(&llama, &["`model.norm.weight`", "[31]", "[32]"]);
    let bytes = std::fs::read(fixture("llama").join("model.safetensors")).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    fails(&llama, &["cannot read the weights", "model.safetensors"]);
    std::fs::remove_file(&weights).unwrap();
    fails(&llama, &["lacks weights (model.safetensors"]);
    std::fs::write(llama.join("config.json"), "{").unwrap();
    fails(&llama, &["cannot understand", "config.json"]);

    let sharded = copy("llama3_sharded", temp.path());
    std::fs::remove_file(sharded.join("model-00002-of-00002.safetensors")).unwrap();
    fails(&sharded, &["lacks model-00002-of-00002.safetensors, which model.safetensors.index.json names"]);

    let gguf = temp.path().join("broken.gguf");
    std::fs::write(&gguf, b"GGUF").unwrap();
    fails(&gguf, &["broken.gguf"]);
}

#[test]
fn a_checkpoint_of_the_bare_decoder_is_read_too() {
    let temp = tempfile::tempdir().unwrap();
    let llama = copy("llama", temp.path());
    let weights = llama.join("model.safetensors");
    let tensors = safetensors::load(&weights, &Device::Cpu).unwrap();
    let bare: HashMap<_, _> =
        tensors.into_iter().map(|(name, tensor)| (name.replacen("model.", "", 1), tensor)).collect();
    safetensors::save(&bare, &weights).unwrap();
    let golden = golden("llama");
    let logits = Model::load(&llama).unwrap().forward(&tokens_of(&golden)).unwrap();
    assert!(deviation(&logits, &golden["logits"]) < 1e-5);
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

    let shallow = Model::load(&fixture("llama")).unwrap();
    let last = model.config().hook("blocks.2.hook_resid_post").unwrap();
    assert!(shallow.run_to_hook(&tokens(&[1]), &hook).is_ok());
    assert!(matches!(shallow.run_to_hook(&tokens(&[1]), &last), Err(ModelError::UnknownHook { .. })));
}

#[test]
fn the_files_of_a_model_are_those_that_decide_what_it_computes() {
    let names = |name: &str| -> Vec<String> {
        let files = model_files(&fixture(name)).unwrap();
        files.iter().map(|file| file.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(
        names("gpt_neo"),
        ["config.json", "pytorch_model.bin", "tokenizer.json", "tokenizer_config.json"]
    );
    assert_eq!(
        names("llama3_sharded"),
        [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.json",
            "tokenizer_config.json"
        ]
    );
}
