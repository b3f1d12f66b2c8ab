//! The hooked transformer: loads a decoder-only language model and runs it to a hook, or on from one.
//!
//! One decoder on candle tensors serves every family; a family only says how its `config.json` becomes a
//! [`DecoderConfig`] and what its tensors are called. Everything computes in f32. Axes: B sequences, P positions,
//! D `d_model`, H heads, h `d_head`, M `d_mlp`, V vocabulary. Read [`Model`] first.

mod attention;
mod byte_pairs;
mod compare;
mod config;
mod decoder;
mod error;
mod families;
mod files;
mod gguf;
mod hook;
mod language_model;
mod loss;
mod mlp;
mod modules;
mod norm;
mod parallel;
mod rotary;
mod tensor_file;
mod tokenizer;
mod vector;
mod weights;

pub use compare::Comparison;
pub use config::{
    Activation, DecoderConfig, Family, MlpKind, NormKind, Positions, RotaryScaling, SpecialTokens,
};
pub use decoder::HookState;
pub use error::ModelError;
pub use files::model_files;
pub use hook::{HookPoint, Hooks};
pub use language_model::Model;
pub use loss::{per_token_kl, per_token_loss};
pub use tokenizer::ModelTokenizer;
