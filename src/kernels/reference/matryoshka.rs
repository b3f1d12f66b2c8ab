//! One step of a Matryoshka BatchTopK SAE (Bussmann et al. 2025), after SAELens' `matryoshka_batchtopk_sae.py`:
//! a BatchTopK step in which every prefix of the latents must reconstruct the input, too.

use super::super::batch_topk::BatchTopKStep;
use super::topk::{Auxiliary, Pre, add_pulls, batch_choice};
use super::{Params, Sizes, StepLosses, StepOutcome, decoded};

/// One step; `widths` rise to F. With `aux_by_level` the dead latents of every level make up for what is left
/// at that level, without it all dead latents for what is left in the end. Besides the outcome, the mean
/// squared errors of all levels but the last, whose sum is `losses.auxiliary`.
pub fn matryoshka_step(
    params: &Params<f64>,
    step: &BatchTopKStep,
    widths: &[usize],
    aux_by_level: bool,
    dead: &[bool],
    x: &[f64],
) -> (StepOutcome, Vec<f64>) {
    let sizes = Sizes::new(params, x);
    let (d_in, d_sae, n_tokens) = (sizes.d_in, sizes.d_sae, sizes.n_tokens);
    let scale = 1.0 / n_tokens as f64;
    let topk = step.as_topk(0);
    let Pre { pre, order, x_in } = Pre::new(params, &topk, x);
    let acts = batch_choice(&pre, &order, step.kept_of(n_tokens));
    let mut grads = params.zeros_like();
    let mut d_pre = vec![0.0; pre.len()];

    // Level l decodes the latents below widths[l].
    let mut errors = Vec::new();
    let mut inner = Vec::new();
    let mut g_of_bias = vec![0.0; x.len()];
    let mut reconstruction = Vec::new();
    for &width in widths {
        let prefix: Vec<f64> =
            acts.iter().enumerate().map(|(i, &act)| if i % d_sae < width { act } else { 0.0 }).collect();
        reconstruction = decoded(params, &prefix, n_tokens);
        let error: Vec<f64> = reconstruction.iter().zip(x).map(|(a, b)| a - b).collect();
        inner.push(scale * error.iter().map(|e| e * e).sum::<f64>());
        let g: Vec<f64> = error.iter().map(|e| 2.0 * scale * e).collect();
        g_of_bias.iter_mut().zip(&g).for_each(|(sum, g)| *sum += g);
        sizes.add_decoder_gradients(&mut grads, &prefix, &g);
        add_pulls(params, &prefix, &g, &mut d_pre);
        errors.push(error);
    }
    let mse = inner.pop().expect("invariant: there is a level");

    let auxiliary = Auxiliary { params, step: &topk, pre: &pre, order: &order, half: d_in / 2 };
    let mut add = |from: usize, to: usize, error: &[f64]| {
        auxiliary.add(|f| dead[f] && (from..to).contains(&f), error, &mut d_pre, &mut grads)
    };
    let sparsity = if aux_by_level {
        let first = std::iter::once(0).chain(widths.iter().copied());
        first.zip(widths).zip(&errors).map(|((from, &to), error)| add(from, to, error)).sum()
    } else {
        add(0, d_sae, &errors[widths.len() - 1])
    };
    sizes.add_encoder_gradients(&mut grads, &d_pre, &x_in);
    sizes.add_decoder_bias_gradient(&mut grads, params, &g_of_bias, step.apply_b_dec_to_input);

    let auxiliary = inner.iter().sum::<f64>();
    let l0 = scale * acts.iter().filter(|&&act| act != 0.0).count() as f64;
    let losses = StepLosses { overall: mse + sparsity + auxiliary, mse, sparsity, auxiliary, l0 };
    (StepOutcome { losses, grads, acts, reconstruction }, inner)
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::Problem;
    use super::super::tests::check;
    use super::*;

    #[test]
    fn gradients_are_those_of_the_loss() {
        let problem = Problem::new(6, 9, 4, 0.3, 4);
        let (params, x) = (problem.params.to_f64(), problem.x64());
        for rescale_acts_by_decoder_norm in [false, true] {
            for apply_b_dec_to_input in [false, true] {
                let step = BatchTopKStep {
                    k: 3.3,
                    aux_loss_coefficient: 0.8,
                    normalize_aux_loss: false,
                    rescale_acts_by_decoder_norm,
                    apply_b_dec_to_input,
                };
                check(&format!("{step:?}"), &params, &|params| {
                    let (outcome, inner) = matryoshka_step(params, &step, &[2, 5, 9], true, &[false; 9], &x);
                    assert_eq!(inner.len(), 2);
                    (outcome.losses.overall, outcome.grads)
                });
            }
        }
    }

    /// One level is a BatchTopK.
    #[test]
    fn one_level_is_the_whole() {
        let problem = Problem::new(6, 9, 4, 0.3, 4);
        let (params, x) = (problem.params.to_f64(), problem.x64());
        let dead = [true, false, true, true, false, false, true, true, false];
        let step = BatchTopKStep {
            k: 2.3,
            aux_loss_coefficient: 0.8,
            normalize_aux_loss: false,
            rescale_acts_by_decoder_norm: true,
            apply_b_dec_to_input: true,
        };
        let whole = super::super::batch_topk_step(&params, &step, &dead, &x);
        for aux_by_level in [false, true] {
            let (outcome, inner) = matryoshka_step(&params, &step, &[9], aux_by_level, &dead, &x);
            assert!(inner.is_empty());
            assert!((outcome.losses.overall - whole.losses.overall).abs() < 1e-9);
            for (a, b) in outcome.grads.arrays().into_iter().zip(whole.grads.arrays()) {
                assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-9));
            }
        }
    }
}
