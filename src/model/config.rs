//! What a decoder is made of, in one form for all families; a family's loader fills it in.

use std::path::Path;

use super::{ModelError, families, files::Layout, gguf};

/// The shape and the choices of one decoder-only transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Where the configuration comes from.
    pub family: Family,
    /// Number of blocks.
    pub n_layers: usize,
    /// Width of the residual stream, D.
    pub d_model: usize,
    /// Number of query heads, H.
    pub n_heads: usize,
    /// Number of key and value heads; each serves `n_heads / n_kv_heads` query heads.
    pub n_kv_heads: usize,
    /// Width of one head, h.
    pub d_head: usize,
    /// Hidden width of the MLP, M.
    pub d_mlp: usize,
    /// Rows of the embedding, V.
    pub vocab_size: usize,
    /// The longest sequence.
    pub n_ctx: usize,
    /// Kind of normalisation before attention, before the MLP and at the end.
    pub norm: NormKind,
    /// Added to the variance, or to the mean square.
    pub norm_eps: f64,
    /// How positions enter.
    pub positions: Positions,
    /// Factor on the attention scores: `1/sqrt(d_head)` in most families, 1 in GPT-Neo.
    pub attention_scale: f64,
    /// For each layer, how many keys a query sees, itself included; `None` is all before it.
    pub windows: Vec<Option<usize>>,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the projection out of attention has a bias.
    pub attention_output_bias: bool,
    /// Kind of MLP.
    pub mlp: MlpKind,
    /// The MLP's nonlinearity.
    pub activation: Activation,
    /// Whether the MLP's projections have biases.
    pub mlp_bias: bool,
    /// Whether the unembedding is the embedding.
    pub tied: bool,
    /// The configuration's own idea of the special tokens, for tokenizers that don't say.
    pub special: SpecialTokens,
}

/// Token ids that a model's configuration names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Starts a sequence.
    pub bos: Option<u32>,
    /// Ends a sequence.
    pub eos: Option<u32>,
    /// Fills a sequence up.
    pub pad: Option<u32>,
}

/// The families of models that can be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// GPT-Neo; the TinyStories models are of this family.
    GptNeo,
    /// Llama, and what shares its form, as SmolLM2.
    Llama,
    /// Qwen2 and Qwen2.5.
    Qwen2,
}

/// Kind of normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// Mean and variance, with weight and bias.
    Layer,
    /// Mean square only, with a weight.
    Rms,
}

/// How a model knows about positions.
#[derive(Clone, Debug, PartialEq)]
pub enum Positions {
    /// A learned vector for each position, added to the embedding.
    Learned,
    /// Rotation of queries and keys; dimension i of a head is paired with dimension i + h/2.
    Rotary {
        /// Base of the geometric series of frequencies.
        theta: f64,
        /// Change of the frequencies for contexts beyond the original one.
        scaling: RotaryScaling,
    },
}

/// Change of the rotary frequencies.
#[derive(Clone, Debug, PartialEq)]
pub enum RotaryScaling {
    /// None.
    None,
    /// Llama 3.1's: long waves are slowed by `factor`, short ones kept, with a ramp between.
    Llama3 {
        /// Divides the frequencies of long waves.
        factor: f64,
        /// Waves longer than the original context over this are long.
        low_freq_factor: f64,
        /// Waves shorter than the original context over this are short.
        high_freq_factor: f64,
        /// The context that the model was first trained for.
        original_context: usize,
    },
    /// Each frequency is divided by its own factor, as GGUF files state it; h/2 of them.
    Factors(Vec<f32>),
}

/// Kind of MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpKind {
    /// `W_out act(W_in x)`.
    Plain,
    /// `W_out (act(W_gate x) * W_in x)`.
    Gated,
}

/// Nonlinearity of an MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// GELU by its tanh approximation.
    GeluTanh,
    /// `x sigmoid(x)`.
    Silu,
}

impl DecoderConfig {
    /// Reads the configuration of the model at `path`, without weights.
    ///
    /// # Errors
    /// If there is no model at `path`, or none that can be loaded.
    pub fn read(path: &Path) -> Result<Self, ModelError> {
        match Layout::of(path)? {
            Layout::Folder { config, .. } => families::read(&config),
            Layout::Gguf { file, .. } => gguf::GgufFile::open(&file)?.config(),
        }
    }

    /// Checks that the numbers go together; `path` is for the message.
    pub(crate) fn checked(self, path: &Path) -> Result<Self, ModelError> {
        let counts = [
            ("the number of layers", self.n_layers),
            ("the width of the residual stream", self.d_model),
            ("the number of heads", self.n_heads),
            ("the number of key and value heads", self.n_kv_heads),
            ("the width of a head", self.d_head),
            ("the width of the MLP", self.d_mlp),
            ("the vocabulary", self.vocab_size),
            ("the context", self.n_ctx),
        ];
        let contradiction = |message| ModelError::Contradiction { path: path.to_owned(), message };
        if let Some((what, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err(contradiction(format!("{what} is 0")));
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let message = format!("{} heads share {} key and value heads", self.n_heads, self.n_kv_heads);
            return Err(contradiction(message));
        }
        if matches!(self.positions, Positions::Rotary { .. }) && !self.d_head.is_multiple_of(2) {
            return Err(contradiction(format!(
                "rotary positions need an even head width, not {}",
                self.d_head
            )));
        }
        if self.windows.len() != self.n_layers {
            let message = format!("{} layers, but attention kinds for {}", self.n_layers, self.windows.len());
            return Err(contradiction(message));
        }
        if self.windows.contains(&Some(0)) {
            return Err(contradiction("an attention window of 0".to_owned()));
        }
        Ok(self)
    }
}
