//! The tokenizer: from `tokenizer.json`, from the files that came before it, or from the tables inside a GGUF file.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::Path;

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::quantized::tokenizer::TokenizerFromGguf;
use serde_json::Value as Json;
use tokenizers::models::ModelWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{SplitDelimiterBehavior, Tokenizer};

use super::config::SpecialTokens;
use super::files::{TokenizerDefinition, TokenizerFiles};
use super::{ModelError, byte_pairs};

/// Turns text into tokens and back, and knows the special ones.
#[derive(Clone, Debug)]
pub struct ModelTokenizer {
    inner: Tokenizer,
    bos: Option<u32>,
    eos: Option<u32>,
    pad: Option<u32>,
    sep: Option<u32>,
}

impl ModelTokenizer {
    /// Reads the tokenizer of a folder, and its special tokens from the files that name them. What those don't
    /// mention is taken from `fallback`; what they set to null stays unset.
    pub(crate) fn from_files(
        files: &TokenizerFiles,
        fallback: SpecialTokens,
    ) -> Result<Option<Self>, ModelError> {
        let Some(definition) = &files.definition else { return Ok(None) };
        let mut named = Vec::new();
        for path in &files.special {
            let text = std::fs::read_to_string(path).map_err(ModelError::read(path))?;
            named.push(serde_json::from_str::<Json>(&text).map_err(ModelError::json(path))?);
        }
        let (path, inner) = match definition {
            TokenizerDefinition::Whole(path) => {
                (path, Tokenizer::from_file(path).map_err(|reason| failed(path, &reason))?)
            }
            TokenizerDefinition::BytePairs(parts) => {
                if let Some(class) = byte_pairs::other_class(&named) {
                    // Data that is tokenised already needs no tokenizer, so this isn't the end.
                    let path = parts.vocab.display();
                    tracing::warn!("`{path}` is for {class}, which needs a tokenizer.json; going on without");
                    return Ok(None);
                }
                named.push(byte_pairs::defaults());
                (&parts.vocab, byte_pairs::build(parts, &named)?)
            }
        };
        let id = |key: &str, fallback: Option<u32>| match named.iter().find_map(|json| json.get(key)) {
            Some(token) => {
                let content = token.as_str().or_else(|| token.get("content").and_then(Json::as_str));
                content.and_then(|content| inner.token_to_id(content))
            }
            None => fallback,
        };
        let (bos, eos) = (id("bos_token", fallback.bos), id("eos_token", fallback.eos));
        let (pad, sep) = (id("pad_token", fallback.pad), id("sep_token", None));
        Ok(Some(Self::new(inner, bos, eos, pad, sep).map_err(|reason| failed(path, &reason))?))
    }

    /// Makes the tokenizer that a GGUF file describes.
    pub(crate) fn from_gguf(
        content: &Content,
        path: &Path,
        special: SpecialTokens,
    ) -> Result<Self, ModelError> {
        let failed = |reason: &dyn Display| failed(path, reason);
        let mut inner = Tokenizer::from_gguf(content).map_err(|reason| failed(&reason))?;
        split_as_named(&mut inner, content).map_err(|reason| failed(&reason))?;
        let sep = content.metadata.get("tokenizer.ggml.seperator_token_id").and_then(|id| id.to_u32().ok());
        Self::new(inner, special.bos, special.eos, special.pad, sep).map_err(|reason| failed(&reason))
    }

    /// Applies TransformerLens' rules for tokens that a tokenizer lacks: the end is `<|endoftext|>`, padding and
    /// beginning are the end.
    fn new(
        mut inner: Tokenizer,
        bos: Option<u32>,
        eos: Option<u32>,
        pad: Option<u32>,
        sep: Option<u32>,
    ) -> tokenizers::Result<Self> {
        inner.with_truncation(None)?.with_padding(None);
        let eos = eos.or_else(|| inner.token_to_id("<|endoftext|>"));
        Ok(Self { inner, bos: bos.or(eos), eos, pad: pad.or(eos), sep })
    }

    /// Tokens of a text; none are added before or after it.
    ///
    /// # Errors
    /// If the tokenizer has no way to write the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let encoding = self.inner.encode_fast(text, false).map_err(|reason| self.failed_on(&reason))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of tokens, with or without the special ones.
    ///
    /// # Errors
    /// If the tokenizer cannot put the tokens together.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, ModelError> {
        self.inner.decode(ids, skip_special).map_err(|reason| self.failed_on(&reason))
    }

    /// The token that starts a sequence; the end token where the tokenizer has no other.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a sequence.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// The token that fills a sequence up; the end token where the tokenizer has no other.
    pub fn pad_id(&self) -> Option<u32> {
        self.pad
    }

    /// The token that separates parts, which few tokenizers have.
    pub fn sep_id(&self) -> Option<u32> {
        self.sep
    }

    /// Number of tokens, the added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The tokens that stand for structure rather than text: beginning, end, padding, separator. Tokens of a
    /// chat's format are not among them.
    pub fn special_ids(&self) -> BTreeSet<u32> {
        [self.bos, self.eos, self.pad, self.sep].into_iter().flatten().collect()
    }

    fn failed_on(&self, reason: &dyn Display) -> ModelError {
        ModelError::Tokenization { message: reason.to_string() }
    }
}

/// Sets the splitting into words that a GGUF file names, by llama.cpp's names.
///
/// candle knows Qwen2's and otherwise falls back to GPT-2's with a space put before the text, which would give
/// other tokens without a word; so what isn't known is refused here.
fn split_as_named(tokenizer: &mut Tokenizer, content: &Content) -> tokenizers::Result<()> {
    const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let name = match content.metadata.get("tokenizer.ggml.pre") {
        Some(Value::String(name)) => name.as_str(),
        _ => "",
    };
    match name {
        "qwen2" => {}
        "gpt-2" => {
            tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
        }
        "smollm" => {
            let parts = vec![Digits::new(true).into(), ByteLevel::new(false, true, true).into()];
            tokenizer.with_pre_tokenizer(Some(Sequence::new(parts)));
        }
        "llama-bpe" => {
            let words =
                Split::new(SplitPattern::Regex(LLAMA3.to_owned()), SplitDelimiterBehavior::Isolated, false)?;
            let parts = vec![words.into(), ByteLevel::new(false, true, false).into()];
            tokenizer.with_pre_tokenizer(Some(Sequence::new(parts)));
            if let ModelWrapper::BPE(model) = tokenizer.get_model() {
                let mut model = model.clone();
                model.ignore_merges = true;
                tokenizer.with_model(model);
            }
        }
        other => {
            let known = "gpt-2, smollm, qwen2, llama-bpe; a tokenizer.json beside the file is used instead";
            return Err(format!("it splits text by `{other}`, known are: {known}").into());
        }
    }
    Ok(())
}

fn failed(path: &Path, reason: &dyn Display) -> ModelError {
    ModelError::Tokenizer { path: path.to_owned(), message: reason.to_string() }
}
