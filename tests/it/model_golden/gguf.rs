//! Models from GGUF files that are written here as llama.cpp's converter would write them.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use candle_core::quantized::{GgmlDType, QTensor, gguf_file};
use candle_core::{Device, Tensor, safetensors};
use saesweep::model::{Model, model_files};
use serde_json::Value;

use super::{check_tokenizer, deviation, fixture, golden, tokens_of};

/// Writes a GGUF of a fixture as llama.cpp's converter would.
fn write_gguf(name: &str, path: &Path, dtype: GgmlDType, rope_factors: Option<Vec<f32>>) {
    let folder = fixture(name);
    let read = |file: &str| -> Value {
        serde_json::from_str(&std::fs::read_to_string(folder.join(file)).unwrap()).unwrap()
    };
    let (config, tokenizer) = (read("config.json"), read("tokenizer.json"));
    let architecture = config["model_type"].as_str().unwrap().to_owned();
    let number = |key: &str| gguf_file::Value::U32(config[key].as_u64().unwrap() as u32);
    let text = |text: &str| gguf_file::Value::String(text.to_owned());
    let list = |items: Vec<gguf_file::Value>| gguf_file::Value::Array(items);
    let theta = config.get("rope_theta").or_else(|| config["rope_parameters"].get("rope_theta")).unwrap();
    let mut vocab: Vec<(&String, u64)> = tokenizer["model"]["vocab"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(k, v)| (k, v.as_u64().unwrap()))
        .collect();
    vocab.sort_by_key(|(_, id)| *id);
    let merges = tokenizer["model"]["merges"].as_array().unwrap().iter();
    let merges =
        merges.map(|pair| text(&format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap())));
    let mut metadata = vec![
        ("general.architecture".to_owned(), text(&architecture)),
        ("tokenizer.ggml.model".to_owned(), text("gpt2")),
        ("tokenizer.ggml.pre".to_owned(), text("gpt-2")),
        ("tokenizer.ggml.tokens".to_owned(), list(vocab.iter().map(|(token, _)| text(token)).collect())),
        ("tokenizer.ggml.merges".to_owned(), list(merges.collect())),
        (
            "tokenizer.ggml.token_type".to_owned(),
            list(vocab.iter().map(|(_, id)| gguf_file::Value::I32(if *id < 3 { 3 } else { 1 })).collect()),
        ),
        ("tokenizer.ggml.bos_token_id".to_owned(), gguf_file::Value::U32(0)),
        ("tokenizer.ggml.eos_token_id".to_owned(), gguf_file::Value::U32(1)),
    ];
    for (key, value) in [
        ("block_count", number("num_hidden_layers")),
        ("context_length", number("max_position_embeddings")),
        ("embedding_length", number("hidden_size")),
        ("feed_forward_length", number("intermediate_size")),
        ("attention.head_count", number("num_attention_heads")),
        ("attention.head_count_kv", number("num_key_value_heads")),
        (
            "attention.layer_norm_rms_epsilon",
            gguf_file::Value::F32(config["rms_norm_eps"].as_f64().unwrap() as f32),
        ),
        ("rope.freq_base", gguf_file::Value::F32(theta.as_f64().unwrap() as f32)),
        ("rope.dimension_count", gguf_file::Value::U32(8)),
    ] {
        metadata.push((format!("{architecture}.{key}"), value));
    }
    let mut tensors: Vec<(String, QTensor)> = Vec::new();
    for file in std::fs::read_dir(&folder).unwrap() {
        let file = file.unwrap().path();
        let is_weights =
            file.extension().is_some_and(|ext| ext == "safetensors") && !file.ends_with("golden.safetensors");
        if !is_weights {
            continue;
        }
        let loaded: BTreeMap<_, _> = safetensors::load(&file, &Device::Cpu).unwrap().into_iter().collect();
        for (name, tensor) in loaded {
            let tensor = match name.as_str() {
                n if architecture == "llama" && n.contains("q_proj") => {
                    interleave_halves(&tensor, &config["num_attention_heads"])
                }
                n if architecture == "llama" && n.contains("k_proj") => {
                    interleave_halves(&tensor, &config["num_key_value_heads"])
                }
                _ => tensor,
            };
            let dtype = if tensor.rank() == 1 { GgmlDType::F32 } else { dtype };
            tensors.push((gguf_name(&name), QTensor::quantize(&tensor, dtype).unwrap()));
        }
    }
    if let Some(factors) = rope_factors {
        let factors = Tensor::new(factors, &Device::Cpu).unwrap();
        tensors.push(("rope_freqs.weight".to_owned(), QTensor::quantize(&factors, GgmlDType::F32).unwrap()));
    }
    let metadata: Vec<(&str, &gguf_file::Value)> = metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
    gguf_file::write(&mut File::create(path).unwrap(), &metadata, &tensors).unwrap();
}

/// Row (head, half, i) goes to row (head, i, half).
fn interleave_halves(tensor: &Tensor, heads: &Value) -> Tensor {
    let heads = heads.as_u64().unwrap() as usize;
    let rows = tensor.dim(0).unwrap();
    let half = rows / heads / 2;
    let mut order = Vec::new();
    for head in 0..heads {
        for i in 0..half {
            for part in 0..2 {
                order.push((head * 2 * half + part * half + i) as u32);
            }
        }
    }
    tensor.index_select(&Tensor::new(order, &Device::Cpu).unwrap(), 0).unwrap()
}

fn gguf_name(name: &str) -> String {
    let mut name = name.to_owned();
    for (from, to) in [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("lm_head", "output"),
        ("model.layers", "blk"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.o_proj", "attn_output"),
        ("self_attn.", "attn_"),
        ("mlp.", "ffn_"),
        ("_proj", ""),
    ] {
        name = name.replace(from, to);
    }
    name
}

#[test]
fn a_gguf_gives_the_bits_of_the_folder_that_it_was_made_from() {
    let temp = tempfile::tempdir().unwrap();
    for name in ["llama", "qwen2"] {
        let path = temp.path().join(format!("{name}.gguf"));
        write_gguf(name, &path, GgmlDType::F32, None);
        let (from_folder, from_gguf) = (Model::load(&fixture(name)).unwrap(), Model::load(&path).unwrap());
        let mut cfg = from_gguf.config().clone();
        cfg.special = from_folder.config().special;
        assert_eq!(&cfg, from_folder.config());
        assert_eq!(Model::header(&path).unwrap(), *from_gguf.config());
        let tokens = tokens_of(&golden(name));
        let logits =
            |model: &Model| model.forward(&tokens).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(logits(&from_folder), logits(&from_gguf), "{name}");
        check_tokenizer(from_gguf.tokenizer().unwrap(), name);
        assert_eq!(from_gguf.tokenizer().unwrap().bos_id(), Some(0));
        assert_eq!(model_files(&path).unwrap(), [path]);
    }
}

#[test]
fn a_quantised_gguf_is_close_and_rope_factors_stand_for_scaling() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("quantised.GGUF");
    write_gguf("llama", &path, GgmlDType::Q8_0, None);
    let golden_llama = golden("llama");
    let logits = Model::load(&path).unwrap().forward(&tokens_of(&golden_llama)).unwrap();
    let off = deviation(&logits, &golden_llama["logits"]);
    assert!(off > 1e-6 && off < 0.05, "{off}");

    // The factors that this model's llama3 scaling amounts to: waves of 6.3, 30, 140 and 664 positions in an
    // original context of 32.
    let path = temp.path().join("scaled.gguf");
    let wave = |i: i32| std::f64::consts::TAU * 500f64.powf(f64::from(i) / 4.0);
    let smooth = (32.0 / wave(1) - 1.0) / 3.0;
    let ramp = 1.0 / ((1.0 - smooth) / 4.0 + smooth);
    write_gguf("llama3_sharded", &path, GgmlDType::F32, Some(vec![1.0, ramp as f32, 4.0, 4.0]));
    let golden_scaled = golden("llama3_sharded");
    let logits = Model::load(&path).unwrap().forward(&tokens_of(&golden_scaled)).unwrap();
    let off = deviation(&logits, &golden_scaled["logits"]);
    assert!(off < 1e-5, "{off}");
}

#[test]
fn a_tokenizer_beside_a_gguf_wins() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("m.gguf");
    write_gguf("llama", &path, GgmlDType::F32, None);
    let tokenizer = std::fs::read_to_string(fixture("llama").join("tokenizer.json")).unwrap();
    std::fs::write(temp.path().join("tokenizer.json"), tokenizer.replace("<|pad|>", "<|fill|>")).unwrap();
    let model = Model::load(&path).unwrap();
    assert_eq!(model.tokenizer().unwrap().decode(&[2], false).unwrap(), "<|fill|>");
    assert_eq!(model.tokenizer().unwrap().bos_id(), Some(0));
    assert_eq!(model_files(&path).unwrap().len(), 2);
}
