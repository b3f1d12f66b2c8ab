//! A model's folder: which files make it, and what is said when some are missing or wrong.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, IndexOp, Tensor, safetensors};
use saesweep::model::{Model, model_files};
use serde_json::{Value, json};

use super::{check_tokenizer, deviation, fixture, golden, tokens_of};

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

#[test]
fn a_tokenizer_in_the_older_form_gives_the_same_tokens() {
    let temp = tempfile::tempdir().unwrap();
    let folder = copy("gpt_neo", temp.path());
    let read = |name: &str| -> Value {
        serde_json::from_str(&std::fs::read_to_string(folder.join(name)).unwrap()).unwrap()
    };
    let model = read("tokenizer.json")["model"].clone();
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    let merges = model["merges"].as_array().unwrap().iter();
    let merges = merges.map(|pair| format!("{} {}\n", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()));
    write("merges.txt", &format!("#version: 0.2\n{}", merges.collect::<String>()));
    write("vocab.json", &model["vocab"].to_string());
    let mut config = read("tokenizer_config.json");
    config["unk_token"] = Value::Null;
    write("tokenizer_config.json", &config.to_string());
    std::fs::remove_file(folder.join("tokenizer.json")).unwrap();

    let tokenizer = |folder: &Path| Model::load(folder).unwrap().tokenizer().cloned();
    let found = tokenizer(&folder).unwrap();
    check_tokenizer(&found, "gpt_neo");
    assert_eq!((found.bos_id(), found.eos_id(), found.pad_id()), (Some(0), Some(1), Some(1)));
    let files = model_files(&folder).unwrap();
    let names: Vec<_> = files.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
    let expected = ["config.json", "pytorch_model.bin", "vocab.json", "merges.txt", "tokenizer_config.json"];
    assert_eq!(names, expected);

    // The files of another class look the same, and split text by other rules.
    config["tokenizer_class"] = json!("CLIPTokenizer");
    write("tokenizer_config.json", &config.to_string());
    assert!(tokenizer(&folder).is_none());
    std::fs::remove_file(folder.join("merges.txt")).unwrap();
    assert_eq!(model_files(&folder).unwrap().len(), 2);
}
