//! What each architecture does in a step, and the names of its own losses.

use super::{
    schedules::{annealed_k, sparsity_coefficient},
    trainer::Trainer,
};
use crate::{
    kernels::{
        BatchTopKStep, GatedStep, JumpReluStep, Pool, SparsityMode, StandardStep, StepLosses, TopKStep,
        abs_topk_step, batch_topk_step, gated_step, jumprelu_step, matryoshka_step, standard_step, topk_step,
    },
    trial::{Architecture, SparsityLossMode},
};
use std::borrow::Cow;

/// Names and values of a line of metrics.
pub(super) type Values = Vec<(Cow<'static, str>, f64)>;

impl Trainer {
    /// Losses of the scaled batch; their gradients go to `self.grads`.
    pub(super) fn gradients(&mut self, pool: &Pool) -> StepLosses {
        let apply_b_dec_to_input = self.sae.apply_b_dec_to_input;
        let window = self.train.dead_feature_window;
        let options = &self.train.options;
        let normalize_aux_loss = options.normalize_aux_loss;
        let (d_in, d_sae, t) = (self.params.d_in(), self.sae.d_sae, self.steps);
        let annealed = |k: f64| annealed_k(options, k, d_in, d_sae, t);
        let Self { ws, params, scaled: x, grads, firing, dead, steps, .. } = self;
        match self.sae.architecture {
            Architecture::Standard { l1_coefficient: last, lp_norm, l1_warm_up_steps } => {
                let l1_coefficient = sparsity_coefficient(last, l1_warm_up_steps, *steps);
                let step = StandardStep { l1_coefficient, lp_norm, apply_b_dec_to_input };
                standard_step(pool, ws, params, &step, x, grads)
            }
            Architecture::Gated { l1_coefficient: last, l1_warm_up_steps } => {
                let l1_coefficient = sparsity_coefficient(last, l1_warm_up_steps, *steps);
                let step = GatedStep { l1_coefficient, apply_b_dec_to_input };
                gated_step(pool, ws, params, &step, x, grads)
            }
            Architecture::TopK { k, aux_loss_coefficient, rescale_acts_by_decoder_norm } => {
                let step = TopKStep {
                    k: annealed(k as f64) as usize,
                    aux_loss_coefficient,
                    normalize_aux_loss,
                    rescale_acts_by_decoder_norm,
                    apply_b_dec_to_input,
                };
                topk_step(pool, ws, params, &step, firing.dead(window, dead), x, grads)
            }
            Architecture::AbsTopK { k, aux_loss_coefficient, rescale_acts_by_decoder_norm } => {
                let step = TopKStep {
                    k: annealed(k as f64) as usize,
                    aux_loss_coefficient,
                    normalize_aux_loss,
                    rescale_acts_by_decoder_norm,
                    apply_b_dec_to_input,
                };
                abs_topk_step(pool, ws, params, &step, firing.dead(window, dead), x, grads)
            }
            Architecture::BatchTopK {
                k,
                topk_threshold_lr: rate,
                aux_loss_coefficient,
                rescale_acts_by_decoder_norm,
            } => {
                let step = BatchTopKStep {
                    k: annealed(k),
                    aux_loss_coefficient,
                    normalize_aux_loss,
                    rescale_acts_by_decoder_norm,
                    apply_b_dec_to_input,
                };
                let losses = batch_topk_step(pool, ws, params, &step, firing.dead(window, dead), x, grads);
                self.follow_least_kept(rate);
                losses
            }
            Architecture::MatryoshkaBatchTopK {
                k,
                topk_threshold_lr: rate,
                aux_loss_coefficient,
                rescale_acts_by_decoder_norm,
                matryoshka_widths: ref widths,
                use_matryoshka_aux_loss: by_level,
            } => {
                let step = BatchTopKStep {
                    k: annealed(k),
                    aux_loss_coefficient,
                    normalize_aux_loss,
                    rescale_acts_by_decoder_norm,
                    apply_b_dec_to_input,
                };
                let dead = firing.dead(window, dead);
                let losses = matryoshka_step(pool, ws, params, &step, widths, by_level, dead, x, grads);
                self.follow_least_kept(rate);
                losses
            }
            Architecture::JumpRelu {
                jumprelu_bandwidth: bandwidth,
                jumprelu_sparsity_loss_mode,
                l0_coefficient: last,
                l0_warm_up_steps,
                pre_act_loss_coefficient,
                jumprelu_tanh_scale: scale,
                jumprelu_ste_to_input: ste_to_input,
                target_l0,
                ..
            } => {
                // Below 0 a threshold would let negative pre-activations through.
                params.threshold.iter_mut().filter(|theta| **theta < 0.0).for_each(|theta| *theta = 0.0);
                let step = JumpReluStep {
                    mode: match jumprelu_sparsity_loss_mode {
                        SparsityLossMode::Step => SparsityMode::Step,
                        SparsityLossMode::Tanh => SparsityMode::Tanh { scale },
                        SparsityLossMode::Quadratic => SparsityMode::Quadratic { target_l0 },
                    },
                    l0_coefficient: sparsity_coefficient(last, l0_warm_up_steps, *steps),
                    bandwidth,
                    pre_act_loss_coefficient,
                    ste_to_input,
                    apply_b_dec_to_input,
                };
                jumprelu_step(pool, ws, params, &step, firing.dead(window, dead), x, grads)
            }
        }
    }

    /// The architecture's own losses of the last step, and what else it logs.
    pub(super) fn own_values(&self) -> (Values, Values) {
        let (losses, mut details) = self.values_of_architecture();
        let k = match self.sae.architecture {
            _ if self.train.options.k_anneal_steps == 0 => None,
            Architecture::TopK { k, .. } | Architecture::AbsTopK { k, .. } => Some(k as f64),
            Architecture::BatchTopK { k, .. } | Architecture::MatryoshkaBatchTopK { k, .. } => Some(k),
            _ => None,
        };
        if let Some(k) = k {
            let k = annealed_k(&self.train.options, k, self.params.d_in(), self.sae.d_sae, self.steps);
            details.push(("details/k".into(), k));
        }
        (losses, details)
    }

    fn values_of_architecture(&self) -> (Values, Values) {
        let StepLosses { sparsity, auxiliary, .. } = self.losses;
        let coefficient = |last, warm_up_steps| sparsity_coefficient(last, warm_up_steps, self.steps);
        let with_threshold = |losses: Vec<(&'static str, f64)>| {
            (named(losses), named([("metrics/topk_threshold", self.threshold_now())]))
        };
        match self.sae.architecture {
            Architecture::Standard { l1_coefficient: last, l1_warm_up_steps, .. } => (
                named([("losses/l1_loss", sparsity)]),
                named([("details/l1_coefficient", coefficient(last, l1_warm_up_steps))]),
            ),
            Architecture::Gated { l1_coefficient: last, l1_warm_up_steps } => (
                named([("losses/l1_loss", sparsity), ("losses/auxiliary_reconstruction_loss", auxiliary)]),
                named([("details/l1_coefficient", coefficient(last, l1_warm_up_steps))]),
            ),
            Architecture::TopK { .. } | Architecture::AbsTopK { .. } => {
                (named([("losses/auxiliary_reconstruction_loss", sparsity)]), Values::new())
            }
            Architecture::BatchTopK { .. } => {
                with_threshold(vec![("losses/auxiliary_reconstruction_loss", sparsity)])
            }
            Architecture::MatryoshkaBatchTopK { ref matryoshka_widths, .. } => {
                let (mut losses, details) =
                    with_threshold(vec![("losses/auxiliary_reconstruction_loss", sparsity)]);
                losses.extend(
                    matryoshka_widths
                        .iter()
                        .zip(self.ws.level_losses())
                        .map(|(width, loss)| (format!("losses/inner_mse_loss_{width}").into(), *loss)),
                );
                (losses, details)
            }
            Architecture::JumpRelu {
                l0_coefficient: last,
                l0_warm_up_steps,
                pre_act_loss_coefficient,
                ..
            } => {
                let mut losses = named([("losses/l0_loss", sparsity)]);
                if pre_act_loss_coefficient != 0.0 {
                    losses.push(("losses/pre_act_loss".into(), auxiliary));
                }
                (losses, named([("details/l0_coefficient", coefficient(last, l0_warm_up_steps))]))
            }
        }
    }
}

fn named(values: impl IntoIterator<Item = (&'static str, f64)>) -> Values {
    values.into_iter().map(|(name, value)| (name.into(), value)).collect()
}
