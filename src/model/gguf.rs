//! GGUF files of the llama and qwen2 architectures, as llama.cpp writes them; weights are dequantised to f32.

use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Content, TensorInfo, Value};
use candle_core::{Device, Tensor};

use super::config::{Activation, MlpKind, NormKind, Positions, RotaryScaling, SpecialTokens};
use super::modules::{BlockModule, Module};
use super::{DecoderConfig, Family, ModelError};

/// Bytes of a tensor that are read and dequantised at once.
const READ_AT_ONCE: usize = 1 << 20;

/// Frequency factors that stand for Llama 3.1's scaling.
const ROPE_FACTORS: &str = "rope_freqs.weight";

/// An open GGUF file: its header, and the file to read tensors from.
pub(crate) struct GgufFile {
    path: PathBuf,
    file: File,
    content: Content,
}

impl GgufFile {
    pub(crate) fn open(path: &Path) -> Result<Self, ModelError> {
        let mut file = File::open(path).map_err(ModelError::read(path))?;
        let content = {
            let mut reader = std::io::BufReader::with_capacity(1 << 20, &mut file);
            Content::read(&mut reader).map_err(ModelError::weights(path))?
        };
        Ok(Self { path: path.to_owned(), file, content })
    }

    pub(crate) fn content(&self) -> &Content {
        &self.content
    }

    pub(crate) fn config(&mut self) -> Result<DecoderConfig, ModelError> {
        let family = self.family()?;
        let n_heads = self.count("attention.head_count")?;
        let d_model = self.count("embedding_length")?;
        let d_head = match self.optional("attention.key_length") {
            Some(value) => self.as_count("attention.key_length", value)?,
            None => d_model / n_heads.max(1),
        };
        self.refuse_other_rotary_settings(d_head)?;
        let n_layers = self.count("block_count")?;
        let embedding = self.content.tensor_infos.get("token_embd.weight");
        let names = || vec!["token_embd.weight".to_owned()];
        let missing = || ModelError::MissingTensors { path: self.path.clone(), names: names() };
        let vocab_size = embedding.ok_or_else(missing)?.shape.dims().first().copied().unwrap_or(0);
        let cfg = DecoderConfig {
            family,
            n_layers,
            d_model,
            n_heads,
            n_kv_heads: match self.optional("attention.head_count_kv") {
                Some(value) => self.as_count("attention.head_count_kv", value)?,
                None => n_heads,
            },
            d_head,
            d_mlp: self.count("feed_forward_length")?,
            vocab_size,
            n_ctx: self.count("context_length")?,
            norm: NormKind::Rms,
            norm_eps: self
                .optional("attention.layer_norm_rms_epsilon")
                .and_then(number)
                .ok_or_else(|| self.missing("attention.layer_norm_rms_epsilon"))?,
            positions: Positions::Rotary {
                theta: self.optional("rope.freq_base").and_then(number).unwrap_or(10_000.0),
                scaling: RotaryScaling::None,
            },
            attention_scale: 1.0 / (d_head as f64).sqrt(),
            windows: vec![None; n_layers],
            qkv_bias: self.contains("blk.0.attn_q.bias"),
            attention_output_bias: self.contains("blk.0.attn_output.bias"),
            mlp: MlpKind::Gated,
            activation: Activation::Silu,
            mlp_bias: self.contains("blk.0.ffn_up.bias"),
            tied: !self.contains("output.weight"),
            special: SpecialTokens {
                bos: self.token_id("bos_token_id"),
                eos: self.token_id("eos_token_id"),
                pad: self.token_id("padding_token_id"),
            },
        };
        self.with_rope_factors(cfg)?.checked(&self.path)
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.content.tensor_infos.contains_key(name)
    }

    /// Reads a tensor some rows at a time, so that little of it is in memory twice.
    pub(crate) fn read(&mut self, name: &str) -> candle_core::Result<Tensor> {
        let Some(info) = self.content.tensor_infos.get(name) else {
            candle_core::bail!("there is no tensor `{name}`")
        };
        let dtype = info.ggml_dtype;
        let (n_rows, width) = match *info.shape.dims() {
            [n_rows, width] if width.is_multiple_of(dtype.block_size()) => (n_rows, width),
            _ => (1, info.shape.elem_count()),
        };
        let row_bytes = width / dtype.block_size() * dtype.type_size();
        if n_rows.saturating_mul(row_bytes) as u64 > self.file.metadata()?.len() {
            candle_core::bail!("tensor `{name}` of shape {:?} is longer than the file", info.shape)
        }
        let rows_at_once = (READ_AT_ONCE / row_bytes.max(1)).max(1);
        let mut values = Vec::with_capacity(n_rows * width);
        for first in (0..n_rows).step_by(rows_at_once) {
            let part = TensorInfo {
                ggml_dtype: dtype,
                shape: (rows_at_once.min(n_rows - first), width).into(),
                offset: info.offset + (first * row_bytes) as u64,
            };
            let part = part.read(&mut self.file, self.content.tensor_data_offset, &Device::Cpu)?;
            values.extend(part.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?);
        }
        Tensor::from_vec(values, info.shape.clone(), &Device::Cpu)
    }

    /// The name of a module's tensors, without `.weight`.
    pub(crate) fn module_name(module: Module) -> String {
        let (layer, module) = match module {
            Module::Embed => return "token_embd".to_owned(),
            Module::LearnedPositions => unreachable!("invariant: both architectures have rotary positions"),
            Module::FinalNorm => return "output_norm".to_owned(),
            Module::Unembed => return "output".to_owned(),
            Module::Block(layer, module) => (layer, module),
        };
        let name = match module {
            BlockModule::AttentionNorm => "attn_norm",
            BlockModule::Query => "attn_q",
            BlockModule::Key => "attn_k",
            BlockModule::Value => "attn_v",
            BlockModule::AttentionOutput => "attn_output",
            BlockModule::MlpNorm => "ffn_norm",
            BlockModule::MlpGate => "ffn_gate",
            BlockModule::MlpIn => "ffn_up",
            BlockModule::MlpOut => "ffn_down",
        };
        format!("blk.{layer}.{name}")
    }

    /// Puts the rows of queries and keys back in Hugging Face's order.
    ///
    /// llama.cpp rotates neighbouring pairs, so its converter interleaves the two halves of each head of a
    /// llama model: row (head, half, i) becomes (head, i, half). The qwen2 architecture is left as it is.
    pub(crate) fn undo_permutation(
        &self,
        tensor: Tensor,
        module: Module,
        cfg: &DecoderConfig,
    ) -> candle_core::Result<Tensor> {
        let heads = match module {
            Module::Block(_, BlockModule::Query) => cfg.n_heads,
            Module::Block(_, BlockModule::Key) => cfg.n_kv_heads,
            _ => return Ok(tensor),
        };
        if cfg.family != Family::Llama {
            return Ok(tensor);
        }
        let rest = tensor.elem_count() / (heads * cfg.d_head);
        tensor
            .reshape((heads, cfg.d_head / 2, 2, rest))?
            .transpose(1, 2)?
            .contiguous()?
            .reshape(tensor.shape())
    }

    fn family(&self) -> Result<Family, ModelError> {
        let found = match self.content.metadata.get("general.architecture") {
            Some(Value::String(found)) => found.as_str(),
            _ => return Err(self.missing("general.architecture")),
        };
        match found {
            "llama" => Ok(Family::Llama),
            "qwen2" => Ok(Family::Qwen2),
            other => Err(ModelError::UnsupportedFamily {
                path: self.path.clone(),
                found: other.to_owned(),
                supported: "llama, qwen2".to_owned(),
            }),
        }
    }

    /// Rotary positions on a part of the head, or stretched in a way other than by factors, are refused.
    fn refuse_other_rotary_settings(&self, d_head: usize) -> Result<(), ModelError> {
        let refuse = |key: &str, found: String, supported: String| {
            Err(ModelError::UnsupportedSetting {
                path: self.path.clone(),
                key: self.key(key),
                found,
                supported,
            })
        };
        if let Some(value) = self.optional("rope.dimension_count") {
            let found = self.as_count("rope.dimension_count", value)?;
            if found != d_head {
                return refuse(
                    "rope.dimension_count",
                    found.to_string(),
                    format!("the head width, {d_head}"),
                );
            }
        }
        match self.optional("rope.scaling.type") {
            Some(Value::String(kind)) if kind != "none" => refuse(
                "rope.scaling.type",
                kind.clone(),
                "none, or rope_freqs.weight among the tensors".to_owned(),
            ),
            _ => Ok(()),
        }
    }

    fn with_rope_factors(&mut self, mut cfg: DecoderConfig) -> Result<DecoderConfig, ModelError> {
        if !self.contains(ROPE_FACTORS) {
            return Ok(cfg);
        }
        let path = self.path.clone();
        let factors = self.read(ROPE_FACTORS).and_then(|tensor| tensor.flatten_all()?.to_vec1::<f32>());
        let factors = factors.map_err(ModelError::weights(&path))?;
        if factors.len() != cfg.d_head / 2 {
            return Err(ModelError::TensorShape {
                path,
                name: ROPE_FACTORS.to_owned(),
                found: vec![factors.len()],
                expected: vec![cfg.d_head / 2],
            });
        }
        if let Positions::Rotary { scaling, .. } = &mut cfg.positions {
            *scaling = RotaryScaling::Factors(factors);
        }
        Ok(cfg)
    }

    /// The id that the tokenizer's metadata give a special token.
    fn token_id(&self, key: &str) -> Option<u32> {
        let value = self.content.metadata.get(&format!("tokenizer.ggml.{key}"))?;
        whole(value).and_then(|id| u32::try_from(id).ok())
    }

    /// The full name of one of the architecture's settings.
    fn key(&self, key: &str) -> String {
        match self.content.metadata.get("general.architecture") {
            Some(Value::String(architecture)) => format!("{architecture}.{key}"),
            _ => key.to_owned(),
        }
    }

    fn optional(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(&self.key(key))
    }

    fn count(&self, key: &str) -> Result<usize, ModelError> {
        self.as_count(key, self.optional(key).ok_or_else(|| self.missing(key))?)
    }

    fn as_count(&self, key: &str, value: &Value) -> Result<usize, ModelError> {
        whole(value).and_then(|count| usize::try_from(count).ok()).ok_or_else(|| self.missing(key))
    }

    fn missing(&self, key: &str) -> ModelError {
        let key = if key.contains("general.") { key.to_owned() } else { self.key(key) };
        ModelError::MissingSetting { path: self.path.clone(), key }
    }
}

/// A whole number of any of the format's types, if it isn't negative.
fn whole(value: &Value) -> Option<u64> {
    match value {
        Value::U8(v) => Some(u64::from(*v)),
        Value::U16(v) => Some(u64::from(*v)),
        Value::U32(v) => Some(u64::from(*v)),
        Value::U64(v) => Some(*v),
        Value::I8(v) => u64::try_from(*v).ok(),
        Value::I16(v) => u64::try_from(*v).ok(),
        Value::I32(v) => u64::try_from(*v).ok(),
        Value::I64(v) => u64::try_from(*v).ok(),
        _ => None,
    }
}

/// A real number of either of the format's types. Settings are stored in f32 but meant in decimal, so 1e-5 is
/// read as 1e-5 rather than as the f32 nearest to it.
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::F32(v) => v.to_string().parse().ok(),
        Value::F64(v) => Some(*v),
        other => whole(other).map(|v| v as f64),
    }
}
