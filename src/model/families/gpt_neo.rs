//! GPT-Neo: learned positions, LayerNorm, unscaled scores, windows in the layers marked `local`.

use serde::Deserialize;

use super::ConfigFile;
use crate::model::config::{Family, MlpKind, NormKind, Positions};
use crate::model::modules::{BlockModule, Module};
use crate::model::{DecoderConfig, ModelError};

#[derive(Deserialize)]
struct NeoConfig {
    vocab_size: usize,
    hidden_size: usize,
    num_layers: usize,
    num_heads: usize,
    /// Four times the residual width when absent.
    intermediate_size: Option<usize>,
    max_position_embeddings: usize,
    layer_norm_epsilon: f64,
    window_size: usize,
    /// One entry a layer; wins over `attention_types`.
    attention_layers: Option<Vec<String>>,
    /// Runs of layers: a pattern and how often it repeats.
    attention_types: Option<Vec<(Vec<String>, usize)>>,
}

pub(super) fn config(file: &ConfigFile<'_>) -> Result<DecoderConfig, ModelError> {
    let neo: NeoConfig = file.read()?;
    let kinds = match (&neo.attention_layers, &neo.attention_types) {
        (Some(layers), _) => layers.clone(),
        (None, Some(runs)) => repeated(runs),
        (None, None) => return Err(file.missing("attention_types")),
    };
    let window = |kind: &String| match kind.as_str() {
        "global" => Ok(None),
        "local" => Ok(Some(neo.window_size)),
        other => Err(file.unsupported("attention_types", other, "global, local")),
    };
    if neo.num_heads == 0 || !neo.hidden_size.is_multiple_of(neo.num_heads) {
        return Err(file.unsupported("num_heads", neo.num_heads, "a divisor of hidden_size"));
    }
    Ok(DecoderConfig {
        family: Family::GptNeo,
        n_layers: neo.num_layers,
        d_model: neo.hidden_size,
        n_heads: neo.num_heads,
        n_kv_heads: neo.num_heads,
        d_head: neo.hidden_size / neo.num_heads,
        d_mlp: neo.intermediate_size.unwrap_or(4 * neo.hidden_size),
        vocab_size: neo.vocab_size,
        n_ctx: neo.max_position_embeddings,
        norm: NormKind::Layer,
        norm_eps: neo.layer_norm_epsilon,
        positions: Positions::Learned,
        attention_scale: 1.0,
        windows: kinds.iter().map(window).collect::<Result<_, _>>()?,
        qkv_bias: false,
        attention_output_bias: true,
        mlp: MlpKind::Plain,
        activation: file.activation("activation_function")?,
        mlp_bias: true,
        tied: file.flag("tie_word_embeddings").unwrap_or(true),
        special: file.special(),
    })
}

fn repeated(runs: &[(Vec<String>, usize)]) -> Vec<String> {
    runs.iter().flat_map(|(pattern, times)| std::iter::repeat_n(pattern, *times).flatten().cloned()).collect()
}

pub(super) fn module_name(module: Module) -> String {
    let (layer, module) = match module {
        Module::Embed => return "transformer.wte".to_owned(),
        Module::LearnedPositions => return "transformer.wpe".to_owned(),
        Module::FinalNorm => return "transformer.ln_f".to_owned(),
        Module::Unembed => return "lm_head".to_owned(),
        Module::Block(layer, module) => (layer, module),
    };
    let name = match module {
        BlockModule::AttentionNorm => "ln_1",
        BlockModule::Query => "attn.attention.q_proj",
        BlockModule::Key => "attn.attention.k_proj",
        BlockModule::Value => "attn.attention.v_proj",
        BlockModule::AttentionOutput => "attn.attention.out_proj",
        BlockModule::MlpNorm => "ln_2",
        BlockModule::MlpGate => unreachable!("invariant: GPT-Neo has no gated MLP"),
        BlockModule::MlpIn => "mlp.c_fc",
        BlockModule::MlpOut => "mlp.c_proj",
    };
    format!("transformer.h.{layer}.{name}")
}
