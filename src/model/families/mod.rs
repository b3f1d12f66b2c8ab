//! The families: how a `config.json` becomes a [`DecoderConfig`], and what the tensors are called.

mod gpt_neo;
mod llama;
mod qwen2;

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::config::{Activation, Family, RotaryScaling, SpecialTokens};
use super::modules::Module;
use super::{DecoderConfig, ModelError};

/// Reads a Hugging Face `config.json`.
pub(crate) fn read(path: &Path) -> Result<DecoderConfig, ModelError> {
    let text = std::fs::read_to_string(path).map_err(ModelError::read(path))?;
    let json: Value = serde_json::from_str(&text).map_err(ModelError::json(path))?;
    parse(&json, path)
}

fn parse(json: &Value, path: &Path) -> Result<DecoderConfig, ModelError> {
    let file = ConfigFile { json, path };
    if let Some(found) = json.get("quantization_config").filter(|value| !value.is_null()) {
        let found = found.get("quant_method").unwrap_or(found);
        return Err(file.unsupported("quantization_config", found, "unquantised weights, or a .gguf file"));
    }
    let model_type = json.get("model_type").and_then(Value::as_str);
    let model_type = model_type.ok_or_else(|| file.missing("model_type"))?;
    let family = Family::ALL.into_iter().find(|family| family.model_type() == model_type);
    let cfg = match family {
        Some(Family::GptNeo) => gpt_neo::config(&file)?,
        Some(Family::Llama) => llama::config(&file)?,
        Some(Family::Qwen2) => qwen2::config(&file)?,
        None => {
            return Err(ModelError::UnsupportedFamily {
                path: path.to_owned(),
                found: model_type.to_owned(),
                supported: Family::ALL.map(Family::model_type).join(", "),
            });
        }
    };
    cfg.checked(path)
}

impl Family {
    pub(crate) const ALL: [Self; 3] = [Self::GptNeo, Self::Llama, Self::Qwen2];

    /// `model_type` of a `config.json`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::GptNeo => "gpt_neo",
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
        }
    }

    /// The name of a module's tensors in a Hugging Face checkpoint, without `.weight`.
    pub(crate) fn module_name(self, module: Module) -> String {
        match self {
            Self::GptNeo => gpt_neo::module_name(module),
            Self::Llama | Self::Qwen2 => llama::module_name(module),
        }
    }
}

/// A `config.json` with the path that its errors name.
struct ConfigFile<'a> {
    json: &'a Value,
    path: &'a Path,
}

impl ConfigFile<'_> {
    /// Reads one of the structures that describe a family. A null counts as absent, so that the message names
    /// the key.
    fn read<T: for<'de> Deserialize<'de>>(&self) -> Result<T, ModelError> {
        let mut json = self.json.clone();
        if let Some(settings) = json.as_object_mut() {
            settings.retain(|_, value| !value.is_null());
        }
        T::deserialize(json).map_err(ModelError::json(self.path))
    }

    fn missing(&self, key: &str) -> ModelError {
        ModelError::MissingSetting { path: self.path.to_owned(), key: key.to_owned() }
    }

    fn unsupported(&self, key: &str, found: impl ToString, supported: &str) -> ModelError {
        ModelError::UnsupportedSetting {
            path: self.path.to_owned(),
            key: key.to_owned(),
            found: found.to_string(),
            supported: supported.to_owned(),
        }
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.json.get(key).and_then(Value::as_bool)
    }

    fn activation(&self, key: &str) -> Result<Activation, ModelError> {
        match self.json.get(key).and_then(Value::as_str) {
            Some("gelu_new" | "gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
            Some("silu" | "swish") => Ok(Activation::Silu),
            Some(other) => Err(self.unsupported(key, other, "gelu_new, gelu_pytorch_tanh, silu")),
            None => Err(self.missing(key)),
        }
    }

    /// The token ids of the configuration; of several ends, the first.
    fn special(&self) -> SpecialTokens {
        let id = |key: &str| {
            let value = self.json.get(key)?;
            let value = value.get(0).unwrap_or(value);
            value.as_u64().and_then(|id| u32::try_from(id).ok())
        };
        SpecialTokens { bos: id("bos_token_id"), eos: id("eos_token_id"), pad: id("pad_token_id") }
    }

    /// Base and scaling of rotary positions, in the older spelling (`rope_theta`, `rope_scaling`) or the newer
    /// one, where both are in `rope_parameters`.
    fn rotary(&self) -> Result<(f64, RotaryScaling), ModelError> {
        let newer = self.json.get("rope_parameters").filter(|value| value.is_object());
        let theta = newer.and_then(|rope| rope.get("rope_theta")).or_else(|| self.json.get("rope_theta"));
        let theta = match theta {
            None | Some(Value::Null) => 10_000.0,
            Some(value) => value.as_f64().ok_or_else(|| self.missing("rope_theta"))?,
        };
        let scaling = newer.or_else(|| self.json.get("rope_scaling")).filter(|value| value.is_object());
        let Some(scaling) = scaling else { return Ok((theta, RotaryScaling::None)) };
        let kind = scaling.get("rope_type").or_else(|| scaling.get("type")).and_then(Value::as_str);
        match kind.unwrap_or("default") {
            "default" => Ok((theta, RotaryScaling::None)),
            "llama3" => {
                let number = |key: &str| {
                    scaling
                        .get(key)
                        .and_then(Value::as_f64)
                        .ok_or_else(|| self.missing(&format!("rope_scaling.{key}")))
                };
                let scaling = RotaryScaling::Llama3 {
                    factor: number("factor")?,
                    low_freq_factor: number("low_freq_factor")?,
                    high_freq_factor: number("high_freq_factor")?,
                    original_context: number("original_max_position_embeddings")? as usize,
                };
                Ok((theta, scaling))
            }
            other => Err(self.unsupported("rope_scaling.rope_type", other, "default, llama3")),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
