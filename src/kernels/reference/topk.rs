//! Steps that keep the largest pre-activations, after SAELens' `topk_sae.py`, `batchtopk_sae.py` and
//! `abstopk_sae.py`.

use super::super::aux_weight::NO_VARIANCE;
use super::super::batch_topk::BatchTopKStep;
use super::super::topk::TopKStep;
use super::{
    Aim, Params, Sizes, StepLosses, StepOutcome, decoded, decoder_norms, dot, encoder_input, largest,
    pre_activations, relu,
};

/// One TopK step (Gao et al. 2024, with the auxiliary loss as SAELens 6.54 has it).
///
/// The k largest are chosen by `pre` or, with `rescale_acts_by_decoder_norm`, by `pre * n` (n_i = |W_dec,i|);
/// of equal values the lower index wins. SAELens then decodes `relu(pre * n) / n`: n cancels, in the value
/// and in the gradient, so the code below decodes `relu(pre)`.
pub fn topk_step(params: &Params<f64>, step: &TopKStep, dead: &[bool], x: &[f64]) -> StepOutcome {
    aimed_topk_step(params, step, dead, x, None)
}

/// [`topk_step`] towards other targets than its input. The auxiliary loss is not weighted.
pub fn aimed_topk_step(
    params: &Params<f64>,
    step: &TopKStep,
    dead: &[bool],
    x: &[f64],
    aim: Option<Aim<'_>>,
) -> StepOutcome {
    let Pre { pre, order, x_in } = Pre::new(params, step, x);
    let d_sae = params.d_sae();
    let mut acts = vec![0.0; pre.len()];
    for b in 0..pre.len() / d_sae {
        for f in largest(&order[b * d_sae..][..d_sae], step.k, |_| true) {
            acts[b * d_sae + f] = relu(pre[b * d_sae + f]);
        }
    }
    finished(params, step, dead, x, aim, Chosen { pre, order, x_in, acts })
}

/// One BatchTopK step (Bussmann et al. 2024): as [`topk_step`], but of all the batch's values together the
/// `floor(k B)` largest positive ones are kept; of equal values that of the earlier token wins, then that of
/// the lower latent.
pub fn batch_topk_step(params: &Params<f64>, step: &BatchTopKStep, dead: &[bool], x: &[f64]) -> StepOutcome {
    let topk = step.as_topk(0);
    let Pre { pre, order, x_in } = Pre::new(params, &topk, x);
    let acts = batch_choice(&pre, &order, step.kept_of(x.len() / params.d_in()));
    finished(params, &topk, dead, x, None, Chosen { pre, order, x_in, acts })
}

/// One AbsTopK step (2025, "Rethinking Sparse Autoencoders For Bidirectional Features"): as [`topk_step`],
/// but the largest are chosen by magnitude, for the auxiliary loss, too, and keep their signs.
pub fn abs_topk_step(params: &Params<f64>, step: &TopKStep, dead: &[bool], x: &[f64]) -> StepOutcome {
    let Pre { pre, mut order, x_in } = Pre::new(params, step, x);
    order.iter_mut().for_each(|value| *value = value.abs());
    let d_sae = params.d_sae();
    let mut acts = vec![0.0; pre.len()];
    for b in 0..pre.len() / d_sae {
        for f in largest(&order[b * d_sae..][..d_sae], step.k, |_| true) {
            acts[b * d_sae + f] = pre[b * d_sae + f];
        }
    }
    finished(params, step, dead, x, None, Chosen { pre, order, x_in, acts })
}

/// The `n` largest of a batch, as far as they are positive.
pub(super) fn batch_choice(pre: &[f64], order: &[f64], n: usize) -> Vec<f64> {
    let mut acts = vec![0.0; pre.len()];
    for i in largest(order, n, |i| order[i] > 0.0 || order[i].is_nan()) {
        acts[i] = pre[i];
    }
    acts
}

/// Pre-activations, and the numbers they are chosen by.
pub(super) struct Pre {
    pub(super) pre: Vec<f64>,
    pub(super) order: Vec<f64>,
    pub(super) x_in: Vec<f64>,
}

impl Pre {
    pub(super) fn new(params: &Params<f64>, step: &TopKStep, x: &[f64]) -> Self {
        let d_sae = params.d_sae();
        let x_in = encoder_input(params, step.apply_b_dec_to_input, x);
        let pre = pre_activations(params, &x_in);
        let norms = decoder_norms(params);
        let order = (0..pre.len())
            .map(|i| if step.rescale_acts_by_decoder_norm { pre[i] * norms[i % d_sae] } else { pre[i] })
            .collect();
        Self { pre, order, x_in }
    }
}

/// The same with the activations kept.
struct Chosen {
    pre: Vec<f64>,
    order: Vec<f64>,
    x_in: Vec<f64>,
    acts: Vec<f64>,
}

/// What follows the choice.
fn finished(
    params: &Params<f64>,
    step: &TopKStep,
    dead: &[bool],
    x: &[f64],
    aim: Option<Aim<'_>>,
    chosen: Chosen,
) -> StepOutcome {
    let Chosen { pre, order, x_in, acts } = chosen;
    let sizes = Sizes::new(params, x);
    let (d_in, d_sae, n_tokens) = (sizes.d_in, sizes.d_sae, sizes.n_tokens);
    let scale = 1.0 / n_tokens as f64;

    let reconstruction = decoded(params, &acts, n_tokens);
    let target = aim.map_or(x, |aim| aim.target);
    let weight = |i: usize| aim.map_or(1.0, |aim| aim.weight[i / d_in]);
    let error: Vec<f64> = reconstruction.iter().zip(target).map(|(a, b)| a - b).collect();
    let mse = scale * error.iter().enumerate().map(|(i, e)| weight(i) * e * e).sum::<f64>();

    let mut grads = Params::zeros(d_in, d_sae);
    let g: Vec<f64> = error.iter().enumerate().map(|(i, e)| 2.0 * scale * weight(i) * e).collect();
    let mut d_pre = vec![0.0; n_tokens * d_sae];
    add_pulls(params, &acts, &g, &mut d_pre);
    sizes.add_decoder_gradients(&mut grads, &acts, &g);

    let half = aim.map_or(d_in, |aim| aim.width) / 2;
    let auxiliary = Auxiliary { params, step, pre: &pre, order: &order, half };
    let sparsity = auxiliary.add(|f| dead[f], &error, &mut d_pre, &mut grads);
    sizes.add_encoder_gradients(&mut grads, &d_pre, &x_in);
    sizes.add_decoder_bias_gradient(&mut grads, params, &g, step.apply_b_dec_to_input);

    let l0 = scale * acts.iter().filter(|&&act| act != 0.0).count() as f64;
    let losses = StepLosses { overall: mse + sparsity, mse, sparsity, auxiliary: 0.0, l0 };
    StepOutcome { losses, grads, acts, reconstruction }
}

/// d_pre += g . W_dec where an entry is active.
pub(super) fn add_pulls(params: &Params<f64>, entries: &[f64], g: &[f64], d_pre: &mut [f64]) {
    let (d_in, d_sae) = (params.d_in(), params.d_sae());
    for i in (0..entries.len()).filter(|&i| entries[i] != 0.0) {
        let (b, f) = (i / d_sae, i % d_sae);
        d_pre[i] += dot(&g[b * d_in..][..d_in], &params.w_dec[f * d_in..][..d_in]);
    }
}

/// The auxiliary loss, by which dead latents make up for what is left of the target.
///
/// `w mean_b | z W_dec - e |^2`: e = target - reconstruction is a constant, z are the k' = min(half, n_dead) largest
/// pre-activations of dead latents (not relu'd); `half` is half the target's width.
pub(super) struct Auxiliary<'a> {
    pub(super) params: &'a Params<f64>,
    pub(super) step: &'a TopKStep,
    /// Pre-activations (B, F).
    pub(super) pre: &'a [f64],
    /// What they are chosen by.
    pub(super) order: &'a [f64],
    pub(super) half: usize,
}

impl Auxiliary<'_> {
    /// The loss of the latents for which `is_dead` holds; its gradients are added. `error` is (B, D), -e.
    pub(super) fn add(
        &self,
        is_dead: impl Fn(usize) -> bool,
        error: &[f64],
        d_pre: &mut [f64],
        grads: &mut Params<f64>,
    ) -> f64 {
        let Self { params, step, pre, order, half } = *self;
        let sizes = Sizes::new(params, error);
        let (d_in, d_sae, n_tokens) = (sizes.d_in, sizes.d_sae, sizes.n_tokens);
        let n_dead = (0..d_sae).filter(|&f| is_dead(f)).count();
        let k_aux = half.min(n_dead);
        if k_aux == 0 {
            return 0.0;
        }
        let scale = aux_weight(step, n_dead, half, d_in, error) / n_tokens as f64;
        let mut aux = vec![0.0; pre.len()];
        let mut residual = error.to_vec();
        for b in 0..n_tokens {
            for f in largest(&order[b * d_sae..][..d_sae], k_aux, &is_dead) {
                let (z, row) = (pre[b * d_sae + f], &params.w_dec[f * d_in..][..d_in]);
                aux[b * d_sae + f] = z;
                (0..d_in).for_each(|d| residual[b * d_in + d] += z * row[d]);
            }
        }
        let g: Vec<f64> = residual.iter().map(|r| 2.0 * scale * r).collect();
        add_pulls(params, &aux, &g, d_pre);
        sizes.add_decoder_gradients(grads, &aux, &g);
        scale * residual.iter().map(|r| r * r).sum::<f64>()
    }
}

/// Weight of the auxiliary loss: `c min(n_dead / half, 1)` as SAELens has it, or normalised (Gao et al. 2024)
/// `c / mean_b |e - mean e|^2`, a constant, too; 0 where the error (B, D) is the same for all tokens.
fn aux_weight(step: &TopKStep, n_dead: usize, half: usize, d_in: usize, error: &[f64]) -> f64 {
    let c = step.aux_loss_coefficient;
    if !step.normalize_aux_loss {
        return c * (n_dead as f64 / half as f64).min(1.0);
    }
    let n_tokens = (error.len() / d_in) as f64;
    let mean: Vec<f64> =
        (0..d_in).map(|d| error.iter().skip(d).step_by(d_in).sum::<f64>() / n_tokens).collect();
    let variance =
        error.iter().enumerate().map(|(i, e)| (e - mean[i % d_in]).powi(2)).sum::<f64>() / n_tokens;
    let square = error.iter().map(|e| e * e).sum::<f64>() / n_tokens;
    if variance > NO_VARIANCE * square { c / variance } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::Problem;
    use super::super::tests::check;
    use super::*;

    /// Where nothing is dead, the choice holds still over so small a distance, and gradients are those of the
    /// loss. The auxiliary loss is the same for all three kinds, and tested with the first.
    #[test]
    fn gradients_are_those_of_the_loss() {
        let problem = Problem::new(6, 9, 4, 0.3, 4);
        let (params, x) = (problem.params.to_f64(), problem.x64());
        let none = [false; 9];
        for rescale_acts_by_decoder_norm in [false, true] {
            for apply_b_dec_to_input in [false, true] {
                let step = BatchTopKStep {
                    k: 2.3,
                    aux_loss_coefficient: 0.8,
                    normalize_aux_loss: false,
                    rescale_acts_by_decoder_norm,
                    apply_b_dec_to_input,
                };
                check(&format!("{step:?}"), &params, &|params| {
                    let outcome = batch_topk_step(params, &step, &none, &x);
                    assert_eq!(outcome.losses.l0, 9.0 / 4.0);
                    (outcome.losses.overall, outcome.grads)
                });
                let step = step.as_topk(3);
                check(&format!("by magnitude {step:?}"), &params, &|params| {
                    let outcome = abs_topk_step(params, &step, &none, &x);
                    assert!(outcome.acts.iter().any(|&act| act < 0.0));
                    (outcome.losses.overall, outcome.grads)
                });
            }
        }
    }
}
