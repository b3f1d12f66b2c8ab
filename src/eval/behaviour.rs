//! What the reconstruction does to the model: cross-entropy and KL divergence.
//!
//! The store holds the held-out activations, what the model needs to go on from them, and the losses of the
//! clean and of the zero-ablated model, so only the part after the hook runs here.

use super::evaluate::EvalError;
use crate::{
    model::{Comparison, HookPoint, HookState, Model},
    store::EvalView,
};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;

/// Sums over held-out tokens of the model's behaviour with reconstructions in place.
#[derive(Debug, Default)]
pub(crate) struct BehaviourSums {
    ce_tokens: u64,
    ce_clean: f64,
    ce_sae: f64,
    ce_ablated: f64,
    kl_tokens: u64,
    kl_sae: f64,
    kl_ablated: f64,
}

impl BehaviourSums {
    /// Adds the sequences `first..first + n`, whose activations at the hook are `clean_acts` (n * context, width)
    /// and whose reconstructions `x_hat`. Tokens with `keep` false hold the activation they had and count in no
    /// mean.
    #[expect(clippy::too_many_arguments, reason = "what a model needs to go on, and what is put in")]
    pub(crate) fn add_sequences(
        &mut self,
        model: &Model,
        hook: &HookPoint,
        held_out: &EvalView<'_>,
        first: usize,
        clean_acts: &[f32],
        x_hat: &[f32],
        keep: &[bool],
    ) -> Result<(), EvalError> {
        let context = held_out.context_size;
        let (n, width) = (keep.len() / context, clean_acts.len() / keep.len());
        let rows = first * context..(first + n) * context;
        let mut replaced = x_hat.to_vec();
        for (token, _) in keep.iter().enumerate().filter(|(_, keep)| !**keep) {
            let row = token * width..(token + 1) * width;
            replaced[row.clone()].copy_from_slice(&clean_acts[row]);
        }
        let tokens = Tensor::from_slice(&held_out.tokens[rows.clone()], (n, context), &Device::Cpu)?;
        let state = |acts: &[f32]| -> Result<HookState, EvalError> {
            let carry = held_out
                .carry
                .iter()
                .map(|(carry_width, values)| {
                    let part = &values[rows.start * carry_width..rows.end * carry_width];
                    Tensor::from_slice(part, (n, context, *carry_width), &Device::Cpu)
                })
                .collect::<Result<_, _>>()?;
            Ok(HookState { acts: Tensor::from_slice(acts, (n, context, width), &Device::Cpu)?, carry })
        };
        let Comparison { loss: ce_sae, kl: kl_sae } =
            model.compare_from_hook(&state(clean_acts)?, &state(&replaced)?, hook, &tokens)?;

        for sequence in 0..n {
            for position in 0..context {
                let token = sequence * context + position;
                if !keep[token] {
                    continue;
                }
                self.kl_tokens += 1;
                self.kl_sae += f64::from(kl_sae[token]);
                self.kl_ablated += f64::from(held_out.kl_ablated[rows.start + token]);
                if position + 1 < context {
                    let here = sequence * (context - 1) + position;
                    let stored = (first + sequence) * (context - 1) + position;
                    self.ce_tokens += 1;
                    self.ce_sae += f64::from(ce_sae[here]);
                    self.ce_clean += f64::from(held_out.loss_clean[stored]);
                    self.ce_ablated += f64::from(held_out.loss_ablated[stored]);
                }
            }
        }
        Ok(())
    }

    /// The metrics by name (SAELens 6.54 `run_evals`). One that is not a number is left out.
    pub(crate) fn metrics(&self) -> BTreeMap<String, f64> {
        let per_ce = |sum: f64| sum / self.ce_tokens as f64;
        let per_kl = |sum: f64| sum / self.kl_tokens as f64;
        let (clean, sae, ablated) = (per_ce(self.ce_clean), per_ce(self.ce_sae), per_ce(self.ce_ablated));
        let (kl_sae, kl_ablated) = (per_kl(self.kl_sae), per_kl(self.kl_ablated));
        [
            ("ce_loss_without_sae", clean),
            ("ce_loss_with_sae", sae),
            ("ce_loss_with_ablation", ablated),
            ("ce_loss_score", (ablated - sae) / (ablated - clean)),
            ("kl_div_with_sae", kl_sae),
            ("kl_div_with_ablation", kl_ablated),
            ("kl_div_score", (kl_ablated - kl_sae) / kl_ablated),
        ]
        .into_iter()
        .filter(|(_, value)| value.is_finite())
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
    }
}
