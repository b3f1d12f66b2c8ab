//! Qwen2 and Qwen2.5: as Llama, with biases on queries, keys and values, and perhaps windows in the upper layers.

use candle_transformers::models::qwen2::Config as QwenConfig;
use serde_json::Value;

use super::ConfigFile;
use crate::model::config::{Family, MlpKind, NormKind, Positions};
use crate::model::{DecoderConfig, ModelError};

pub(super) fn config(file: &ConfigFile<'_>) -> Result<DecoderConfig, ModelError> {
    let (theta, scaling) = file.rotary()?;
    // candle's structure wants these stated, while newer files leave them out or say null.
    let mut json = file.json.clone();
    json["rope_theta"] = theta.into();
    for (key, default) in [
        ("sliding_window", 4096.into()),
        ("max_window_layers", 28.into()),
        ("use_sliding_window", false.into()),
        ("tie_word_embeddings", false.into()),
    ] {
        if json.get(key).is_none_or(Value::is_null) {
            json[key] = default;
        }
    }
    let activation = file.activation("hidden_act")?;
    let qwen: QwenConfig = ConfigFile { json: &json, path: file.path }.read()?;
    let d_head = file.d_head(qwen.hidden_size, qwen.num_attention_heads)?;
    let window =
        |layer| (qwen.use_sliding_window && layer >= qwen.max_window_layers).then_some(qwen.sliding_window);
    Ok(DecoderConfig {
        family: Family::Qwen2,
        n_layers: qwen.num_hidden_layers,
        d_model: qwen.hidden_size,
        n_heads: qwen.num_attention_heads,
        n_kv_heads: qwen.num_key_value_heads,
        d_head,
        d_mlp: qwen.intermediate_size,
        vocab_size: qwen.vocab_size,
        n_ctx: qwen.max_position_embeddings,
        norm: NormKind::Rms,
        norm_eps: qwen.rms_norm_eps,
        positions: Positions::Rotary { theta, scaling },
        attention_scale: 1.0 / (d_head as f64).sqrt(),
        windows: (0..qwen.num_hidden_layers).map(window).collect(),
        qkv_bias: true,
        attention_output_bias: false,
        mlp: MlpKind::Gated,
        activation,
        mlp_bias: false,
        tied: qwen.tie_word_embeddings,
        special: file.special(),
    })
}
