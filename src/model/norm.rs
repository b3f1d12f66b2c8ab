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
    pub(crate) fn new(cfg: &DecoderConfig, module: Module, parameters: &mut Parameters) -> Self {
        let weight = parameters.weight(module);
        match cfg.norm {
            NormKind::Layer => {
                let bias = parameters.bias(module).expect("invariant: LayerNorm has a slot for its bias");
                Self::Layer(LayerNorm::new(weight, bias, cfg.norm_eps))
            }
            NormKind::Rms => Self::Rms(RmsNorm::new(weight, cfg.norm_eps)),
        }
    }

    /// (B, P, D) to (B, P, D).
    pub(crate) fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        match self {
            Self::Layer(norm) => norm.forward(x),
            Self::Rms(norm) => norm.forward(x),
        }
    }
}
