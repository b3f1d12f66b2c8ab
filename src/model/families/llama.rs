//! Llama: RMS norms, rotary positions, grouped heads, a gated MLP.

use candle_transformers::models::llama::LlamaConfig;
use serde_json::Value;

use super::ConfigFile;
use crate::model::config::{Family, MlpKind, NormKind, Positions};
use crate::model::modules::{BlockModule, Module};
use crate::model::{DecoderConfig, ModelError};

pub(super) fn config(file: &ConfigFile<'_>) -> Result<DecoderConfig, ModelError> {
    // candle's structure knows only some rotary settings and stops at others, so those are read apart.
    let (theta, scaling) = file.rotary()?;
    let mut json = file.json.clone();
    json["rope_scaling"] = Value::Null;
    json["rope_theta"] = theta.into();
    let llama: LlamaConfig = ConfigFile { json: &json, path: file.path }.read()?;
    let n_heads = llama.num_attention_heads;
    let attention_bias = file.flag("attention_bias").unwrap_or(false);
    let d_head = file.d_head(llama.hidden_size, n_heads)?;
    Ok(DecoderConfig {
        family: Family::Llama,
        n_layers: llama.num_hidden_layers,
        d_model: llama.hidden_size,
        n_heads,
        n_kv_heads: llama.num_key_value_heads(),
        d_head,
        d_mlp: llama.intermediate_size,
        vocab_size: llama.vocab_size,
        n_ctx: llama.max_position_embeddings,
        norm: NormKind::Rms,
        norm_eps: llama.rms_norm_eps,
        positions: Positions::Rotary { theta, scaling },
        attention_scale: 1.0 / (d_head as f64).sqrt(),
        windows: vec![None; llama.num_hidden_layers],
        qkv_bias: attention_bias,
        attention_output_bias: attention_bias,
        mlp: MlpKind::Gated,
        activation: file.activation("hidden_act")?,
        mlp_bias: file.flag("mlp_bias").unwrap_or(false),
        tied: llama.tie_word_embeddings.unwrap_or(false),
        special: file.special(),
    })
}

impl ConfigFile<'_> {
    /// `head_dim` where it is given, else the residual width shared out among the heads.
    pub(super) fn d_head(&self, d_model: usize, n_heads: usize) -> Result<usize, ModelError> {
        match self.json.get("head_dim").and_then(Value::as_u64) {
            Some(d_head) => Ok(d_head as usize),
            None if n_heads > 0 && d_model.is_multiple_of(n_heads) => Ok(d_model / n_heads),
            None => Err(self.unsupported("num_attention_heads", n_heads, "a divisor of hidden_size")),
        }
    }
}

/// Qwen2 shares these names.
pub(super) fn module_name(module: Module) -> String {
    let (layer, module) = match module {
        Module::Embed => return "model.embed_tokens".to_owned(),
        Module::LearnedPositions => unreachable!("invariant: Llama has rotary positions"),
        Module::FinalNorm => return "model.norm".to_owned(),
        Module::Unembed => return "lm_head".to_owned(),
        Module::Block(layer, module) => (layer, module),
    };
    let name = match module {
        BlockModule::AttentionNorm => "input_layernorm",
        BlockModule::Query => "self_attn.q_proj",
        BlockModule::Key => "self_attn.k_proj",
        BlockModule::Value => "self_attn.v_proj",
        BlockModule::AttentionOutput => "self_attn.o_proj",
        BlockModule::MlpNorm => "post_attention_layernorm",
        BlockModule::MlpGate => "mlp.gate_proj",
        BlockModule::MlpIn => "mlp.up_proj",
        BlockModule::MlpOut => "mlp.down_proj",
    };
    format!("model.layers.{layer}.{name}")
}
