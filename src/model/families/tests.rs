//! Tests of reading `config.json`, and the small configuration that other tests use.

use serde_json::json;

use super::*;
use crate::model::config::{MlpKind, NormKind, Positions};

/// A Llama of two layers with grouped heads.
pub(crate) fn tiny_llama() -> DecoderConfig {
    parse(&llama_json(), Path::new("config.json")).unwrap()
}

fn llama_json() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 40, "hidden_size": 12, "intermediate_size": 20,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 64, "hidden_act": "silu", "rope_theta": 500.0,
        "bos_token_id": 1, "eos_token_id": [2, 3],
    })
}

fn neo_json() -> Value {
    json!({
        "model_type": "gpt_neo", "vocab_size": 40, "hidden_size": 12, "num_layers": 4, "num_heads": 3,
        "max_position_embeddings": 64, "layer_norm_epsilon": 1e-5, "window_size": 7,
        "activation_function": "gelu_new", "attention_types": [[["global", "local"], 2]],
    })
}

fn qwen_json() -> Value {
    json!({
        "model_type": "qwen2", "vocab_size": 40, "hidden_size": 12, "intermediate_size": 20,
        "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 64, "hidden_act": "silu", "rope_theta": 1e6, "sliding_window": 8,
        "max_window_layers": 2, "use_sliding_window": false, "tie_word_embeddings": true,
    })
}

fn with(mut json: Value, key: &str, value: Value) -> Value {
    json[key] = value;
    json
}

fn error(json: &Value) -> String {
    parse(json, Path::new("m/config.json")).unwrap_err().to_string()
}

#[test]
fn llama_is_read() {
    let cfg = tiny_llama();
    assert_eq!((cfg.n_heads, cfg.n_kv_heads, cfg.d_head, cfg.d_mlp, cfg.n_ctx), (4, 2, 4, 20, 64));
    assert_eq!((cfg.norm, cfg.mlp, cfg.activation), (NormKind::Rms, MlpKind::Gated, Activation::Silu));
    assert_eq!(cfg.positions, Positions::Rotary { theta: 500.0, scaling: RotaryScaling::None });
    assert_eq!(cfg.attention_scale, 0.5);
    assert!(!cfg.tied && !cfg.qkv_bias && !cfg.attention_output_bias && !cfg.mlp_bias);
    assert_eq!((cfg.special.bos, cfg.special.eos, cfg.special.pad), (Some(1), Some(2), None));
}

#[test]
fn llama_biases_follow_the_configuration() {
    let cfg = parse(&with(llama_json(), "attention_bias", json!(true)), Path::new("c")).unwrap();
    assert!(cfg.qkv_bias && cfg.attention_output_bias && !cfg.mlp_bias);
}

#[test]
fn gpt_neo_is_read() {
    let cfg = parse(&neo_json(), Path::new("c")).unwrap();
    assert_eq!(cfg.windows, [None, Some(7), None, Some(7)]);
    assert_eq!((cfg.d_mlp, cfg.d_head, cfg.attention_scale), (48, 4, 1.0));
    assert!(cfg.tied && !cfg.qkv_bias && cfg.attention_output_bias && cfg.mlp_bias);
    let listed = with(neo_json(), "attention_layers", json!(["local", "global", "global", "global"]));
    assert_eq!(parse(&listed, Path::new("c")).unwrap().windows, [Some(7), None, None, None]);
}

#[test]
fn qwen2_is_read() {
    let cfg = parse(&qwen_json(), Path::new("c")).unwrap();
    assert_eq!(cfg.windows, [None; 3]);
    assert!(cfg.tied && cfg.qkv_bias && !cfg.attention_output_bias);
    let sliding = parse(&with(qwen_json(), "use_sliding_window", json!(true)), Path::new("c")).unwrap();
    assert_eq!(sliding.windows, [None, None, Some(8)]);
}

#[test]
fn rotary_settings_are_read_in_both_spellings() {
    let params = json!({ "rope_type": "llama3", "rope_theta": 7.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32 });
    let newer = parse(&with(llama_json(), "rope_parameters", params.clone()), Path::new("c")).unwrap();
    let older = with(with(llama_json(), "rope_scaling", params), "rope_theta", json!(7));
    assert_eq!(newer.positions, parse(&older, Path::new("c")).unwrap().positions);
    let Positions::Rotary { theta, scaling } = newer.positions else { panic!("rotary expected") };
    assert_eq!(theta, 7.0);
    assert!(matches!(scaling, RotaryScaling::Llama3 { factor: 8.0, original_context: 32, .. }));
}

#[test]
fn what_cannot_be_done_is_said() {
    let check = |json: Value, part: &str| {
        let message = error(&json);
        assert!(message.contains(part) && message.contains("m/config.json"), "{message}");
    };
    check(
        with(llama_json(), "model_type", json!("mamba")),
        "`mamba`, which is not supported; supported: gpt_neo, llama, qwen2",
    );
    check(with(llama_json(), "hidden_act", json!("relu2")), "hidden_act = relu2");
    check(with(llama_json(), "rope_scaling", json!({ "type": "yarn", "factor": 4.0 })), "rope_type = yarn");
    check(with(llama_json(), "quantization_config", json!({ "quant_method": "gptq" })), "gptq");
    check(with(llama_json(), "num_key_value_heads", json!(3)), "4 heads share 3 key and value heads");
    check(with(llama_json(), "hidden_size", json!(null)), "hidden_size");
    check(with(neo_json(), "attention_types", json!([[["global", "sparse"], 2]])), "sparse");
    check(
        with(neo_json(), "attention_types", json!([[["global"], 3]])),
        "4 layers, but attention kinds for 3",
    );
    check(json!({ "hidden_size": 3 }), "model_type");
}
