//! The learned parts of a decoder: which a configuration calls for, and of which shape.

use std::collections::BTreeMap;

use candle_core::Tensor;
use candle_nn::Linear;

use super::hook::{HookPoint, Site};
use super::{DecoderConfig, MlpKind, NormKind, Positions};

/// A part with a weight and perhaps a bias; each family has its own names for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Module {
    Embed,
    LearnedPositions,
    Block(usize, BlockModule),
    FinalNorm,
    Unembed,
}

/// A part of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum BlockModule {
    AttentionNorm,
    Query,
    Key,
    Value,
    AttentionOutput,
    MlpNorm,
    MlpGate,
    MlpIn,
    MlpOut,
}

impl Module {
    /// Whether a run that goes on from `hook` comes to use it.
    pub(crate) fn is_used_from(self, hook: &HookPoint, cfg: &DecoderConfig) -> bool {
        let gated = cfg.mlp == MlpKind::Gated;
        // The last hook from which the step to the next one uses it.
        let last = match self {
            Self::FinalNorm | Self::Unembed => return true,
            Self::Embed if cfg.tied => return true,
            Self::Embed | Self::LearnedPositions => HookPoint::EMBED,
            Self::Block(layer, module) => {
                let site = match module {
                    BlockModule::AttentionNorm
                    | BlockModule::Query
                    | BlockModule::Key
                    | BlockModule::Value => Site::ResidPre,
                    BlockModule::AttentionOutput => Site::AttnZ,
                    BlockModule::MlpGate => Site::MlpNormalized,
                    BlockModule::MlpNorm | BlockModule::MlpIn if gated => Site::MlpPre,
                    BlockModule::MlpNorm | BlockModule::MlpIn => Site::MlpNormalized,
                    BlockModule::MlpOut => Site::MlpPost,
                };
                HookPoint::at(layer, site)
            }
        };
        *hook <= last
    }
}

/// Which of a module's two tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Leaf {
    Weight,
    Bias,
}

impl Leaf {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Weight => "weight",
            Self::Bias => "bias",
        }
    }
}

/// One tensor that a configuration calls for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    pub(crate) module: Module,
    pub(crate) leaf: Leaf,
    /// Linear maps are (out, in).
    pub(crate) shape: Vec<usize>,
}

/// Lists every tensor of the decoder, in the order in which it runs.
pub(crate) fn slots(cfg: &DecoderConfig) -> Vec<Slot> {
    let mut list = Slots(Vec::new());
    let (d, m) = (cfg.d_model, cfg.d_mlp);
    let (q, kv) = (cfg.n_heads * cfg.d_head, cfg.n_kv_heads * cfg.d_head);
    list.weight(Module::Embed, &[cfg.vocab_size, d]);
    if cfg.positions == Positions::Learned {
        list.weight(Module::LearnedPositions, &[cfg.n_ctx, d]);
    }
    for layer in 0..cfg.n_layers {
        let part = |module| Module::Block(layer, module);
        list.norm(part(BlockModule::AttentionNorm), cfg);
        list.linear(part(BlockModule::Query), q, d, cfg.qkv_bias);
        list.linear(part(BlockModule::Key), kv, d, cfg.qkv_bias);
        list.linear(part(BlockModule::Value), kv, d, cfg.qkv_bias);
        list.linear(part(BlockModule::AttentionOutput), d, q, cfg.attention_output_bias);
        list.norm(part(BlockModule::MlpNorm), cfg);
        if cfg.mlp == MlpKind::Gated {
            list.linear(part(BlockModule::MlpGate), m, d, cfg.mlp_bias);
        }
        list.linear(part(BlockModule::MlpIn), m, d, cfg.mlp_bias);
        list.linear(part(BlockModule::MlpOut), d, m, cfg.mlp_bias);
    }
    list.norm(Module::FinalNorm, cfg);
    if !cfg.tied {
        list.weight(Module::Unembed, &[cfg.vocab_size, d]);
    }
    list.0
}

struct Slots(Vec<Slot>);

impl Slots {
    fn weight(&mut self, module: Module, shape: &[usize]) {
        self.0.push(Slot { module, leaf: Leaf::Weight, shape: shape.to_vec() });
    }

    fn linear(&mut self, module: Module, d_out: usize, d_in: usize, bias: bool) {
        self.weight(module, &[d_out, d_in]);
        if bias {
            self.0.push(Slot { module, leaf: Leaf::Bias, shape: vec![d_out] });
        }
    }

    fn norm(&mut self, module: Module, cfg: &DecoderConfig) {
        self.weight(module, &[cfg.d_model]);
        if cfg.norm == NormKind::Layer {
            self.0.push(Slot { module, leaf: Leaf::Bias, shape: vec![cfg.d_model] });
        }
    }
}

/// The tensors of a configuration's slots, in f32, of the right shapes; those that a run from a hook on uses.
pub(crate) struct Parameters(pub(crate) BTreeMap<(Module, Leaf), Tensor>);

impl Parameters {
    /// Takes out a weight; `None` where it is not used.
    pub(crate) fn weight(&mut self, module: Module) -> Option<Tensor> {
        self.0.remove(&(module, Leaf::Weight))
    }

    /// Takes out a bias, if the configuration has one here.
    pub(crate) fn bias(&mut self, module: Module) -> Option<Tensor> {
        self.0.remove(&(module, Leaf::Bias))
    }

    /// Takes out a linear map; `None` where it is not used.
    pub(crate) fn linear(&mut self, module: Module) -> Option<Linear> {
        let weight = self.weight(module)?;
        Some(Linear::new(weight, self.bias(module)))
    }
}

/// A part of the model that a run comes to.
pub(crate) fn used<T>(part: Option<&T>) -> &T {
    part.expect("invariant: what a run from its first hook on uses is loaded")
}
