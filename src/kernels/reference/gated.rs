//! One step of a gated SAE (Rajamanoharan et al. 2024), after SAELens' `gated_sae.py`: unlike the paper, the
//! reconstruction by gates moves the decoder, too.

use super::super::gated::GatedStep;
use super::{
    Params, Sizes, StepLosses, StepOutcome, decoded, decoder_norms, dot, encoder_input, pre_activations, relu,
};

/// One step. `params.b_enc` is the bias of the gates.
pub fn gated_step(params: &Params<f64>, step: &GatedStep, x: &[f64]) -> StepOutcome {
    let sizes = Sizes::new(params, x);
    let (d_in, d_sae, n_tokens) = (sizes.d_in, sizes.d_sae, sizes.n_tokens);
    let scale = 1.0 / n_tokens as f64;

    // pi = h + b_gate with h = x_in W_enc; mag = exp(r) h + b_mag; f = [pi > 0] relu(mag)
    let x_in = encoder_input(params, step.apply_b_dec_to_input, x);
    let pi = pre_activations(params, &x_in);
    let h: Vec<f64> = pi.iter().enumerate().map(|(i, pi)| pi - params.b_enc[i % d_sae]).collect();
    let gates: Vec<f64> = pi.iter().map(|&pi| relu(pi)).collect();
    let acts: Vec<f64> = (0..pi.len())
        .map(|i| {
            let f = i % d_sae;
            let magnitude = params.r_mag[f].exp() * h[i] + params.b_mag[f];
            if pi[i] <= 0.0 { 0.0 } else { relu(magnitude) }
        })
        .collect();

    // mse = mean_b |f W_dec + b_dec - x|^2, aux = mean_b |relu(pi) W_dec + b_dec - x|^2
    let reconstruction = decoded(params, &acts, n_tokens);
    let squares = |error: &[f64]| scale * error.iter().map(|e| e * e).sum::<f64>();
    let error: Vec<f64> = reconstruction.iter().zip(x).map(|(a, b)| a - b).collect();
    let by_gates: Vec<f64> = decoded(params, &gates, n_tokens).iter().zip(x).map(|(a, b)| a - b).collect();
    let (mse, auxiliary) = (squares(&error), squares(&by_gates));
    let g: Vec<f64> = error.iter().map(|e| 2.0 * scale * e).collect();
    let g_gates: Vec<f64> = by_gates.iter().map(|e| 2.0 * scale * e).collect();

    // l1 = lambda mean_b sum_i relu(pi_bi) n_i
    let norms = decoder_norms(params);
    let lambda = step.l1_coefficient * scale;
    let sparsity = lambda * gates.iter().enumerate().map(|(i, gate)| gate * norms[i % d_sae]).sum::<f64>();

    let mut grads = params.zeros_like();
    let mut d_norms = vec![0.0; d_sae];
    let mut d_h = vec![0.0; pi.len()];
    for b in 0..n_tokens {
        for f in 0..d_sae {
            let i = b * d_sae + f;
            let row = &params.w_dec[f * d_in..][..d_in];
            if gates[i] != 0.0 {
                let d_gate = dot(&g_gates[b * d_in..][..d_in], row) + lambda * norms[f];
                d_norms[f] += lambda * gates[i];
                grads.b_enc[f] += d_gate;
                d_h[i] += d_gate;
            }
            if acts[i] != 0.0 {
                let d_magnitude = dot(&g[b * d_in..][..d_in], row);
                grads.b_mag[f] += d_magnitude;
                grads.r_mag[f] += d_magnitude * params.r_mag[f].exp() * h[i];
                d_h[i] += d_magnitude * params.r_mag[f].exp();
            }
        }
    }
    sizes.add_decoder_gradients(&mut grads, &acts, &g);
    sizes.add_decoder_gradients(&mut grads, &gates, &g_gates);
    sizes.add_norm_gradients(&mut grads, params, &d_norms, &norms);
    sizes.add_outer(&mut grads.w_enc, &d_h, &x_in);
    // db_dec = sum_b (g + g_gates) - a (sum_b d_h) W_enc
    for row in g.chunks_exact(d_in).chain(g_gates.chunks_exact(d_in)) {
        (0..d_in).for_each(|d| grads.b_dec[d] += row[d]);
    }
    if step.apply_b_dec_to_input {
        for (i, d_h) in d_h.iter().enumerate() {
            let row = &params.w_enc[i % d_sae * d_in..][..d_in];
            (0..d_in).for_each(|d| grads.b_dec[d] -= d_h * row[d]);
        }
    }

    let l0 = scale * acts.iter().filter(|&&act| act != 0.0).count() as f64;
    let losses = StepLosses { overall: mse + sparsity + auxiliary, mse, sparsity, auxiliary, l0 };
    StepOutcome { losses, grads, acts, reconstruction }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::Problem;
    use super::super::tests::check;
    use super::*;

    #[test]
    fn gradients_are_those_of_the_loss() {
        for shift in [-1.0, 0.5, 10.0] {
            let mut problem = Problem::new(5, 7, 4, shift, 3);
            problem.params.r_mag = (0..7).map(|f| 0.2 * f as f32 - 0.5).collect();
            problem.params.b_mag = (0..7).map(|f| 0.3 - 0.1 * f as f32).collect();
            for apply_b_dec_to_input in [false, true] {
                let step = GatedStep { l1_coefficient: 0.7, apply_b_dec_to_input };
                check(&format!("{step:?}"), &problem.params.to_f64(), &|params| {
                    let outcome = gated_step(params, &step, &problem.x64());
                    (outcome.losses.overall, outcome.grads)
                });
            }
        }
    }
}
