//! What each architecture does in a step, and the names of its own losses.

use super::{
    schedules::{annealed_k, sparsity_coefficient},
    trainer::Trainer,
};
use crate::{
    kernels::{
        BatchTopKStep, GatedStep, JumpReluStep, MatchingPursuitStep, Pool, Pursuit, SparsityMode,
        StandardStep, StepLosses, TopKStep, abs_topk_step, batch_topk_step, gated_step, jumprelu_step,
        matching_pursuit_step, matryoshka_step, standard_step, topk_step,
    },
    trial::{Architecture, SaeConfig, SparsityLossMode, TrainConfig},
};
use std::borrow::Cow;

/// Names and values of a line of metrics.
pub(super) type Values = Vec<(Cow<'static, str>, f64)>;

/// What is done in a step, with the settings of that step.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step<'a> {
    Standard(StandardStep),
    Gated(GatedStep),
    TopK {
        step: TopKStep,
        /// Whether it is an AbsTopK.
        by_magnitude: bool,
    },
    BatchTopK(BatchTopKStep),
    Matryoshka {
        step: BatchTopKStep,
        widths: &'a [usize],
        aux_by_level: bool,
    },
    JumpRelu(JumpReluStep),
    MatchingPursuit(MatchingPursuitStep),
}

impl<'a> Step<'a> {
    /// What a trial does after `t` steps, on activations of width `d_in`.
    pub(super) fn of(sae: &'a SaeConfig, train: &TrainConfig, d_in: usize, t: u64) -> Self {
        let (apply_b_dec_to_input, options) = (sae.apply_b_dec_to_input, &train.options);
        let annealed = |k: f64| annealed_k(options, k, d_in, sae.d_sae, t);
        let topk = |k: usize, aux_loss_coefficient, rescale_acts_by_decoder_norm| TopKStep {
            k: annealed(k as f64) as usize,
            aux_loss_coefficient,
            normalize_aux_loss: options.normalize_aux_loss,
            rescale_acts_by_decoder_norm,
            apply_b_dec_to_input,
        };
        let batch_topk = |k, aux_loss_coefficient, rescale_acts_by_decoder_norm| BatchTopKStep {
            k: annealed(k),
            aux_loss_coefficient,
            normalize_aux_loss: options.normalize_aux_loss,
            rescale_acts_by_decoder_norm,
            apply_b_dec_to_input,
        };
        match sae.architecture {
            Architecture::Standard { l1_coefficient: last, lp_norm, l1_warm_up_steps } => {
                let l1_coefficient = sparsity_coefficient(last, l1_warm_up_steps, t);
                Self::Standard(StandardStep { l1_coefficient, lp_norm, apply_b_dec_to_input })
            }
            Architecture::Gated { l1_coefficient: last, l1_warm_up_steps } => {
                let l1_coefficient = sparsity_coefficient(last, l1_warm_up_steps, t);
                Self::Gated(GatedStep { l1_coefficient, apply_b_dec_to_input })
            }
            Architecture::TopK { k, aux_loss_coefficient, rescale_acts_by_decoder_norm } => Self::TopK {
                step: topk(k, aux_loss_coefficient, rescale_acts_by_decoder_norm),
                by_magnitude: false,
            },
            Architecture::AbsTopK { k, aux_loss_coefficient, rescale_acts_by_decoder_norm } => Self::TopK {
                step: topk(k, aux_loss_coefficient, rescale_acts_by_decoder_norm),
                by_magnitude: true,
            },
            Architecture::BatchTopK { k, aux_loss_coefficient, rescale_acts_by_decoder_norm, .. } => {
                Self::BatchTopK(batch_topk(k, aux_loss_coefficient, rescale_acts_by_decoder_norm))
            }
            Architecture::MatryoshkaBatchTopK {
                k,
                aux_loss_coefficient,
                rescale_acts_by_decoder_norm,
                matryoshka_widths: ref widths,
                use_matryoshka_aux_loss: aux_by_level,
                ..
            } => {
                let step = batch_topk(k, aux_loss_coefficient, rescale_acts_by_decoder_norm);
                Self::Matryoshka { step, widths, aux_by_level }
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
            } => Self::JumpRelu(JumpReluStep {
                mode: match jumprelu_sparsity_loss_mode {
                    SparsityLossMode::Step => SparsityMode::Step,
                    SparsityLossMode::Tanh => SparsityMode::Tanh { scale },
                    SparsityLossMode::Quadratic => SparsityMode::Quadratic { target_l0 },
                },
                l0_coefficient: sparsity_coefficient(last, l0_warm_up_steps, t),
                bandwidth,
                pre_act_loss_coefficient,
                ste_to_input,
                apply_b_dec_to_input,
            }),
            Architecture::MatchingPursuit {
                residual_threshold,
                max_iterations,
                stop_on_duplicate_support,
            } => {
                let pursuit = Pursuit { residual_threshold, max_iterations, stop_on_duplicate_support };
                Self::MatchingPursuit(MatchingPursuitStep { pursuit, apply_b_dec_to_input })
            }
        }
    }

    /// Whether `b_dec` is subtracted from the input before the encoder.
    pub(super) fn apply_b_dec_to_input(&self) -> bool {
        match self {
            Self::Standard(step) => step.apply_b_dec_to_input,
            Self::Gated(step) => step.apply_b_dec_to_input,
            Self::TopK { step, .. } => step.apply_b_dec_to_input,
            Self::BatchTopK(step) | Self::Matryoshka { step, .. } => step.apply_b_dec_to_input,
            Self::JumpRelu(step) => step.apply_b_dec_to_input,
            Self::MatchingPursuit(step) => step.apply_b_dec_to_input,
        }
    }
}

impl Trainer {
    /// Losses of the scaled batch, by the kernels; their gradients go to `self.grads`.
    pub(super) fn gradients(&mut self, pool: &Pool) -> StepLosses {
        let window = self.train.dead_feature_window;
        let Self { sae, train, ws, params, scaled: x, grads, firing, dead, steps, .. } = self;
        let losses = match Step::of(sae, train, params.d_in(), *steps) {
            Step::Standard(step) => standard_step(pool, ws, params, &step, x, grads),
            Step::Gated(step) => gated_step(pool, ws, params, &step, x, grads),
            Step::TopK { step, by_magnitude: false } => {
                topk_step(pool, ws, params, &step, firing.dead(window, dead), x, grads)
            }
            Step::TopK { step, by_magnitude: true } => {
                abs_topk_step(pool, ws, params, &step, firing.dead(window, dead), x, grads)
            }
            Step::BatchTopK(step) => {
                batch_topk_step(pool, ws, params, &step, firing.dead(window, dead), x, grads)
            }
            Step::Matryoshka { step, widths, aux_by_level } => {
                let dead = firing.dead(window, dead);
                matryoshka_step(pool, ws, params, &step, widths, aux_by_level, dead, x, grads)
            }
            Step::JumpRelu(step) => {
                // Below 0 a threshold would let negative pre-activations through.
                params.threshold.iter_mut().filter(|theta| **theta < 0.0).for_each(|theta| *theta = 0.0);
                jumprelu_step(pool, ws, params, &step, firing.dead(window, dead), x, grads)
            }
            Step::MatchingPursuit(step) => matching_pursuit_step(pool, ws, params, &step, x, grads),
        };
        self.follow_least_kept(self.ws.smallest_kept());
        losses
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
                        .zip(self.level_losses())
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
            Architecture::MatchingPursuit { residual_threshold, .. } => {
                let summary = self.pursuit.unwrap_or_else(|| self.ws.pursuit_summary(residual_threshold));
                let details = [
                    ("metrics/max_l0", summary.max_l0 as f64),
                    ("metrics/min_l0", summary.min_l0 as f64),
                    ("metrics/residual_norm", summary.residual_norm),
                    ("metrics/residual_threshold_converged_portion", summary.converged),
                ];
                (Values::new(), named(details))
            }
        }
    }
}

fn named(values: impl IntoIterator<Item = (&'static str, f64)>) -> Values {
    values.into_iter().map(|(name, value)| (name.into(), value)).collect()
}
