//! One JumpReLU step (Rajamanoharan et al. 2024; tanh mode and pre-activation loss: Conerly et al. 2025;
//! quadratic mode: Gemma Scope 2), after SAELens' `jumprelu_sae.py`.
//!
//! A latent is active where `pre > theta`. The jump has no gradient, so an estimator stands in for it: within
//! half a bandwidth of its threshold, `Step(pre - theta)` is taken to rise with slope `1 / bandwidth`, and
//! `f = pre Step(pre - theta)` to jump by `theta` on the same width.

use super::super::jumprelu::{JumpReluStep, SparsityMode};
use super::{
    Aim, Params, Sizes, StepLosses, StepOutcome, decoded, decoder_norms, dot, encoder_input, pre_activations,
};

/// One step; thresholds are those of `params`, which the caller keeps from falling below 0. `dead` has one
/// flag per latent.
pub fn jumprelu_step(params: &Params<f64>, step: &JumpReluStep, dead: &[bool], x: &[f64]) -> StepOutcome {
    aimed_jumprelu_step(params, step, dead, x, None)
}

/// [`jumprelu_step`] towards other targets than its input.
pub fn aimed_jumprelu_step(
    params: &Params<f64>,
    step: &JumpReluStep,
    dead: &[bool],
    x: &[f64],
    aim: Option<Aim<'_>>,
) -> StepOutcome {
    let sizes = Sizes::new(params, x);
    let (d_in, d_sae, n_tokens) = (sizes.d_in, sizes.d_sae, sizes.n_tokens);
    let scale = 1.0 / n_tokens as f64;
    let theta = &params.threshold;
    let bandwidth = step.bandwidth;

    // f = pre [pre > theta]; a NaN is active, so that it shows in the loss
    let x_in = encoder_input(params, step.apply_b_dec_to_input, x);
    let pre = pre_activations(params, &x_in);
    let is_active = |i: usize| pre[i] > theta[i % d_sae] || pre[i].is_nan();
    let acts: Vec<f64> = (0..pre.len()).map(|i| if is_active(i) { pre[i] } else { 0.0 }).collect();
    let reconstruction = decoded(params, &acts, n_tokens);
    let norms = decoder_norms(params);

    let target = aim.map_or(x, |aim| aim.target);
    let weight = |i: usize| aim.map_or(1.0, |aim| aim.weight[i / d_in]);
    let error: Vec<f64> = reconstruction.iter().zip(target).map(|(a, b)| a - b).collect();
    let mse = scale * error.iter().enumerate().map(|(i, e)| weight(i) * e * e).sum::<f64>();
    let g: Vec<f64> = error.iter().enumerate().map(|(i, e)| 2.0 * scale * weight(i) * e).collect();

    // lambda mean_b L0_b, lambda mean_b 2 / L (L0_b - L)^2, or lambda mean_b sum_i tanh(c f_bi n_i)
    let lambda = step.l0_coefficient * scale;
    let l0_of = |b: usize| (0..d_sae).filter(|f| is_active(b * d_sae + f)).count() as f64;
    let mut sparsity = 0.0;
    for b in 0..n_tokens {
        sparsity += lambda
            * match step.mode {
                SparsityMode::Step => l0_of(b),
                SparsityMode::Quadratic { target_l0 } => 2.0 / target_l0 * (l0_of(b) - target_l0).powi(2),
                SparsityMode::Tanh { scale } => {
                    (0..d_sae).map(|f| (scale * acts[b * d_sae + f] * norms[f]).tanh()).sum()
                }
            };
    }

    let mut grads = params.zeros_like();
    let mut d_pre = vec![0.0; pre.len()];
    let mut d_norms = vec![0.0; d_sae];
    let mut auxiliary = 0.0;
    for b in 0..n_tokens {
        // By how much the loss rises with Step of any latent of this token.
        let d_step = match step.mode {
            SparsityMode::Step => lambda,
            SparsityMode::Quadratic { target_l0 } => lambda * 4.0 / target_l0 * (l0_of(b) - target_l0),
            SparsityMode::Tanh { .. } => 0.0,
        };
        for f in 0..d_sae {
            let i = b * d_sae + f;
            let mut d_act = dot(&g[b * d_in..][..d_in], &params.w_dec[f * d_in..][..d_in]);
            if let SparsityMode::Tanh { scale } = step.mode {
                let slope = lambda * scale * (1.0 - (scale * acts[i] * norms[f]).tanh().powi(2));
                d_act += slope * norms[f];
                d_norms[f] += slope * acts[i];
            }
            if is_active(i) {
                d_pre[i] += d_act;
            }
            let from_edge = (pre[i] - theta[f]) / bandwidth;
            if -0.5 < from_edge && from_edge < 0.5 {
                let jump = theta[f] / bandwidth * d_act + d_step / bandwidth;
                grads.threshold[f] -= jump;
                if step.ste_to_input {
                    d_pre[i] += jump;
                }
            }
            // pre_act = c mean_b sum_i relu(theta_i - pre_bi) dead_i n_i
            if dead[f] && pre[i] < theta[f] {
                let weight = step.pre_act_loss_coefficient * scale;
                auxiliary += weight * (theta[f] - pre[i]) * norms[f];
                d_pre[i] -= weight * norms[f];
                grads.threshold[f] += weight * norms[f];
                d_norms[f] += weight * (theta[f] - pre[i]);
            }
        }
    }
    sizes.add_decoder_gradients(&mut grads, &acts, &g);
    sizes.add_encoder_gradients(&mut grads, &d_pre, &x_in);
    sizes.add_norm_gradients(&mut grads, params, &d_norms, &norms);
    sizes.add_decoder_bias_gradient(&mut grads, params, &g, step.apply_b_dec_to_input);

    let l0 = scale * acts.iter().filter(|&&act| act != 0.0).count() as f64;
    let losses = StepLosses { overall: mse + sparsity + auxiliary, mse, sparsity, auxiliary, l0 };
    StepOutcome { losses, grads, acts, reconstruction }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::Problem;
    use super::super::tests::check;
    use super::*;

    /// The loss of which the estimated gradients are the true ones, near the parameters `at`: gates and counts
    /// stay what they are there, and every jump is replaced by a ramp as wide as the bandwidth, as high as the
    /// jump, times the slope of the loss at `at`.
    struct Surrogate<'a> {
        at: &'a Params<f64>,
        step: &'a JumpReluStep,
        dead: &'a [bool],
        x: &'a [f64],
    }

    impl Surrogate<'_> {
        fn pre(&self, params: &Params<f64>) -> Vec<f64> {
            pre_activations(params, &encoder_input(params, self.step.apply_b_dec_to_input, self.x))
        }

        /// Error, tanh and pre-activation losses as functions of the activations.
        fn smooth(&self, params: &Params<f64>, acts: &[f64]) -> f64 {
            let (d_sae, norms) = (params.d_sae(), decoder_norms(params));
            let n_tokens = acts.len() / d_sae;
            let pre = self.pre(params);
            let mut loss: f64 =
                decoded(params, acts, n_tokens).iter().zip(self.x).map(|(a, b)| (a - b).powi(2)).sum();
            for (i, act) in acts.iter().enumerate() {
                let f = i % d_sae;
                if let SparsityMode::Tanh { scale } = self.step.mode {
                    loss += self.step.l0_coefficient * (scale * act * norms[f]).tanh();
                }
                if self.dead[f] {
                    let below = (params.threshold[f] - pre[i]).max(0.0);
                    loss += self.step.pre_act_loss_coefficient * below * norms[f];
                }
            }
            loss / n_tokens as f64
        }

        fn loss(&self, params: &Params<f64>) -> f64 {
            const STEP: f64 = 1e-4;
            let (d_sae, theta, bandwidth) = (params.d_sae(), &self.at.threshold, self.step.bandwidth);
            let (pre, pre_at) = (self.pre(params), self.pre(self.at));
            let n_tokens = pre.len() / d_sae;
            let is_active: Vec<bool> = (0..pre.len()).map(|i| pre_at[i] > theta[i % d_sae]).collect();
            let gated = |pre: &[f64]| -> Vec<f64> {
                pre.iter().zip(&is_active).map(|(pre, is)| if *is { *pre } else { 0.0 }).collect()
            };
            let mut loss = self.smooth(params, &gated(&pre));
            let acts_at = gated(&pre_at);
            for i in 0..pre.len() {
                let (b, f) = (i / d_sae, i % d_sae);
                let moving = if self.step.ste_to_input { pre[i] } else { pre_at[i] };
                let ramp = ((moving - params.threshold[f]) / bandwidth).clamp(-0.5, 0.5);
                let ramp_at = ((pre_at[i] - theta[f]) / bandwidth).clamp(-0.5, 0.5);
                if ramp == ramp_at {
                    continue;
                }
                let shifted = |by: f64| {
                    let mut acts = acts_at.clone();
                    acts[i] += by;
                    self.smooth(self.at, &acts)
                };
                let slope = (shifted(STEP) - shifted(-STEP)) / (2.0 * STEP);
                let l0 = is_active[b * d_sae..][..d_sae].iter().filter(|is| **is).count() as f64;
                let per_step = match self.step.mode {
                    SparsityMode::Step => 1.0,
                    SparsityMode::Quadratic { target_l0 } => 4.0 / target_l0 * (l0 - target_l0),
                    SparsityMode::Tanh { .. } => 0.0,
                };
                let jump = theta[f] * slope + self.step.l0_coefficient / n_tokens as f64 * per_step;
                loss += jump * (ramp - ramp_at);
            }
            loss
        }
    }

    #[test]
    fn gradients_are_those_of_the_surrogate() {
        let mut problem = Problem::new(5, 7, 6, 0.4, 3);
        problem.params.threshold = (0..7).map(|f| 0.1 + 0.15 * f as f32).collect();
        let (params, x) = (problem.params.to_f64(), problem.x64());
        let dead = [false, true, false, false, true, false, false];
        let modes = [
            SparsityMode::Step,
            SparsityMode::Quadratic { target_l0: 2.5 },
            SparsityMode::Tanh { scale: 1.5 },
        ];
        for mode in modes {
            for (ste_to_input, pre_act_loss_coefficient) in
                [(false, 0.0), (true, 0.0), (false, 0.3), (true, 0.3)]
            {
                let step = JumpReluStep {
                    mode,
                    l0_coefficient: 0.7,
                    // Wide, so that many pre-activations of so small a problem lie near their thresholds.
                    bandwidth: 1.9,
                    pre_act_loss_coefficient,
                    ste_to_input,
                    apply_b_dec_to_input: pre_act_loss_coefficient == 0.0,
                };
                let surrogate = Surrogate { at: &params, step: &step, dead: &dead, x: &x };
                let outcome = jumprelu_step(&params, &step, &dead, &x);
                assert!(outcome.grads.threshold.iter().filter(|g| **g != 0.0).count() > 4, "{step:?}");
                check(&format!("{step:?}"), &params, &|params| {
                    (surrogate.loss(params), outcome.grads.clone())
                });
            }
        }
    }
}
