//! The decoder as a walk from hook to hook.
//!
//! A run is a state that goes from one hook to the next: [`Decoder::advance`] is one such step, and everything
//! that a model can do (stop at a hook, go on from one, look at all of them) is a loop over it.

use candle_core::{Result, Tensor};
use candle_nn::{Embedding, Linear, Module as _};

use super::attention::Attention;
use super::hook::{HookPoint, Site};
use super::mlp::Mlp;
use super::modules::{BlockModule, Module, Parameters, used};
use super::norm::Norm;
use super::rotary::Angles;
use super::{DecoderConfig, Positions};

/// A run that has come to a hook.
#[derive(Clone, Debug)]
pub struct HookState {
    /// The activations at the hook, (B, P, W) in f32; replace them to change what follows.
    pub acts: Tensor,
    /// What else is needed to go on: at hooks beside the residual stream the stream itself, (B, P, D); at
    /// hooks on it, nothing.
    pub carry: Vec<Tensor>,
}

/// The learned parts of a model, as far as they are used, ready to run.
pub(crate) struct Decoder {
    embed: Option<Embedding>,
    has_learned_positions: bool,
    learned_positions: Option<Tensor>,
    blocks: Vec<Block>,
    final_norm: Option<Norm>,
    unembed: Option<Linear>,
}

struct Block {
    attention_norm: Option<Norm>,
    attention: Attention,
    mlp_norm: Option<Norm>,
    mlp: Mlp,
}

impl Block {
    fn attention_norm(&self) -> &Norm {
        used(self.attention_norm.as_ref())
    }

    fn mlp_norm(&self) -> &Norm {
        used(self.mlp_norm.as_ref())
    }
}

impl Decoder {
    pub(crate) fn new(cfg: &DecoderConfig, mut parameters: Parameters) -> Result<Self> {
        let embed = parameters.weight(Module::Embed);
        let unembed = if cfg.tied { embed.clone() } else { parameters.weight(Module::Unembed) };
        let learned_positions = parameters.weight(Module::LearnedPositions);
        let block = |layer: usize| -> Result<Block> {
            Ok(Block {
                attention_norm: Norm::new(
                    cfg,
                    Module::Block(layer, BlockModule::AttentionNorm),
                    &mut parameters,
                ),
                attention: Attention::new(cfg, layer, &mut parameters)?,
                mlp_norm: Norm::new(cfg, Module::Block(layer, BlockModule::MlpNorm), &mut parameters),
                mlp: Mlp::new(cfg, layer, &mut parameters),
            })
        };
        let blocks = (0..cfg.n_layers).map(block).collect::<Result<_>>()?;
        Ok(Self {
            embed: embed.map(|embed| Embedding::new(embed, cfg.d_model)),
            has_learned_positions: cfg.positions == Positions::Learned,
            learned_positions,
            blocks,
            final_norm: Norm::new(cfg, Module::FinalNorm, &mut parameters),
            unembed: unembed.map(|unembed| Linear::new(unembed, None)),
        })
    }

    /// Tokens (B, P) to the state at `hook_embed`.
    pub(crate) fn start(&self, tokens: &Tensor) -> Result<HookState> {
        Ok(HookState { acts: used(self.embed.as_ref()).forward(tokens)?, carry: Vec::new() })
    }

    /// From the state at a hook to the state at the next one. The carry must be as long as the hook's
    /// [`carry_len`] says, and the next hook must exist.
    pub(crate) fn advance(
        &self,
        at: HookPoint,
        state: HookState,
        angles: Option<&Angles>,
    ) -> Result<HookState> {
        let HookState { acts, carry } = state;
        let alone = |acts| HookState { acts, carry: Vec::new() };
        if at.site() == Site::Embed {
            if !self.has_learned_positions {
                return Ok(alone(acts));
            }
            let table = used(self.learned_positions.as_ref());
            return acts.broadcast_add(&table.narrow(0, 0, acts.dim(1)?)?).map(alone);
        }
        let block = &self.blocks[at.block()];
        let residual = || carry.first().expect("invariant: this hook carries the residual stream");
        let next = match at.site() {
            Site::Embed | Site::ResidPost => alone(acts),
            Site::ResidPre => {
                let z = block.attention.mix(&block.attention_norm().forward(&acts)?, angles)?;
                HookState { acts: z, carry: vec![acts] }
            }
            Site::AttnZ => HookState { acts: block.attention.out(&acts)?, carry },
            Site::AttnOut | Site::MlpOut => alone((residual() + acts)?),
            Site::ResidMid => HookState { acts: block.mlp_norm().normalized(&acts)?, carry: vec![acts] },
            Site::MlpNormalized => {
                let normed = block.mlp_norm().weighted(&acts)?;
                let pre = block.mlp.pre(&normed)?;
                // It may have been replaced, so a gate must see the same.
                let carry = carry.into_iter().chain(block.mlp.is_gated().then_some(normed)).collect();
                HookState { acts: pre, carry }
            }
            Site::MlpPre => {
                // In a state to go on from, the norm is computed again rather than carried: it costs little beside
                // the projection, and the state stays small.
                let normed = match carry.get(1) {
                    Some(normed) => Some(normed.clone()),
                    None => block.mlp.is_gated().then(|| block.mlp_norm().forward(residual())).transpose()?,
                };
                HookState { acts: block.mlp.post(&acts, normed.as_ref())?, carry }
            }
            Site::MlpPost => HookState { acts: block.mlp.out(&acts)?, carry },
        };
        Ok(next)
    }

    /// From `hook_resid_mid` past `ln2.hook_normalized` to `mlp.hook_pre`, with the same bits and in one pass less.
    pub(crate) fn advance_past_norm(&self, at: HookPoint, state: HookState) -> Result<HookState> {
        let block = &self.blocks[at.block()];
        let pre = block.mlp.pre(&block.mlp_norm().forward(&state.acts)?)?;
        Ok(HookState { acts: pre, carry: vec![state.acts] })
    }

    /// The last residual (B, P, D) to logits (B, P, V).
    pub(crate) fn finish(&self, residual: &Tensor) -> Result<Tensor> {
        used(self.unembed.as_ref()).forward(&used(self.final_norm.as_ref()).forward(residual)?)
    }
}

/// How many tensors go along with the activations at a hook.
pub(crate) fn carry_len(hook: &HookPoint) -> usize {
    match hook.site() {
        Site::Embed | Site::ResidPre | Site::ResidMid | Site::ResidPost => 0,
        Site::AttnZ | Site::AttnOut | Site::MlpNormalized | Site::MlpPre | Site::MlpPost | Site::MlpOut => 1,
    }
}
