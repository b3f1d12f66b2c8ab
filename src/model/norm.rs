//! LayerNorm or RMSNorm, as the configuration says.

use candle_core::Tensor;
use candle_nn::{LayerNorm, Module as _, RmsNorm};

use super::modules::{Module, Parameters};
use super::{DecoderConfig, NormKind};

/// A normalisation over the last axis, with its weights.
pub(crate) enum Norm {
    Layer(LayerNorm),
    Rms(RmsNorm),
}

impl Norm {
    /// `None` where it is not used.
    pub(crate) fn new(cfg: &DecoderConfig, module: Module, parameters: &mut Parameters) -> Option<Self> {
        let weight = parameters.weight(module)?;
        Some(match cfg.norm {
            NormKind::Layer => {
                let bias = parameters.bias(module).expect("invariant: LayerNorm has a slot for its bias");
                Self::Layer(LayerNorm::new(weight, bias, cfg.norm_eps))
            }
            NormKind::Rms => Self::Rms(RmsNorm::new(weight, cfg.norm_eps)),
        })
    }

    /// Each row by its own scale alone, without weights: `ln2.hook_normalized` as TransformerLens has it.
    pub(crate) fn normalized(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Layer(norm) => {
                let (ones, zeros) = (norm.weight().ones_like()?, norm.weight().zeros_like()?);
                LayerNorm::new(ones, zeros, norm.eps()).forward(x)
            }
            Self::Rms(norm) => RmsNorm::new(norm.weight().ones_like()?, norm.eps()).forward(x),
        }
    }

    /// What remains to be done after [`Norm::normalized`].
    pub(crate) fn weighted(&self, normalized: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Layer(norm) => {
                let weighted = normalized.broadcast_mul(norm.weight())?;
                match norm.bias() {
                    Some(bias) => weighted.broadcast_add(bias),
                    None => Ok(weighted),
                }
            }
            Self::Rms(norm) => normalized.broadcast_mul(norm.weight()),
        }
    }

    /// Both together, (B, P, D) to (B, P, D).
    pub(crate) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Layer(norm) => norm.forward(x),
            Self::Rms(norm) => norm.forward(x),
        }
    }
}
