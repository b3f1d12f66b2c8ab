//! One step of a matching pursuit SAE, after SAELens' `matching_pursuit_sae.py`; Mallat and Zhang 1993, and as an
//! SAE Costa et al. 2025.
//!
//! Which latents are chosen, and when a token is done, is not differentiated; everything else is, through the
//! whole chain of residuals.

use super::super::matching_pursuit::{MatchingPursuitStep, Pursuit};
use super::{Aim, Params, StepLosses, StepOutcome, dot, relu};

/// How one token was taken apart.
#[derive(Debug, Clone, Default)]
pub struct Path {
    /// The latents in the order in which they were chosen, and by how much each.
    pub chosen: Vec<(usize, f64)>,
    /// What was left before each choice and at last, one (D) vector more than choices.
    pub residuals: Vec<Vec<f64>>,
    /// The least distance of a decision from going another way: between the products of the best two latents, of the
    /// best from 0, of the residual's norm from the threshold. In units of the token's norm, times the largest of a
    /// decoder row: residuals are rounded as the token was.
    pub margin: f64,
}

/// `r_0 = x_in`; then, over and over, with `d_i = W_dec,i`:
/// `i = argmax relu(r_t . d_i)`, of equal ones the first; `v_t = relu(r_t . d_i)`; `r_(t+1) = r_t - v_t d_i`.
/// A token is done once `v_t` is 0, or, as far as that is set, `i` was chosen before, or `|r_(t+1)|` is below the
/// threshold. NaN counts as larger than every number, and nothing follows it.
pub fn pursue(params: &Params<f64>, pursuit: &Pursuit, x_in: &[f64]) -> Path {
    let d_in = params.d_in();
    let rows = || params.w_dec.chunks_exact(d_in);
    let largest_norm = rows().map(|row| dot(row, row).sqrt()).fold(0.0, f64::max);
    let mut path = Path { residuals: vec![x_in.to_vec()], margin: f64::INFINITY, ..Path::default() };
    let size = dot(x_in, x_in).sqrt();
    for _ in 0..pursuit.iterations(d_in) {
        let rest = &path.residuals[path.residuals.len() - 1];
        let (mut best, mut value, mut second) = (0, f64::NEG_INFINITY, f64::NEG_INFINITY);
        for (i, row) in rows().enumerate() {
            let product = dot(rest, row);
            if product > value || (product.is_nan() && !value.is_nan()) {
                (best, value, second) = (i, product, value);
            } else {
                second = second.max(product);
            }
        }
        let unit = size * largest_norm;
        path.margin = path.margin.min((value - second.max(0.0)).abs() / unit);
        let value = relu(value);
        if value == 0.0 {
            break;
        }
        let row = &params.w_dec[best * d_in..][..d_in];
        let next: Vec<f64> = rest.iter().zip(row).map(|(r, d)| r - value * d).collect();
        let again = path.chosen.iter().any(|&(i, _)| i == best);
        path.chosen.push((best, value));
        let left = dot(&next, &next).sqrt();
        path.residuals.push(next);
        if pursuit.residual_threshold > 0.0 {
            path.margin = path.margin.min((left - pursuit.residual_threshold).abs() / size);
        }
        if (again && pursuit.stop_on_duplicate_support)
            || (pursuit.residual_threshold > 0.0 && left < pursuit.residual_threshold)
            || value.is_nan()
        {
            break;
        }
    }
    path
}

/// One step.
pub fn matching_pursuit_step(params: &Params<f64>, step: &MatchingPursuitStep, x: &[f64]) -> StepOutcome {
    aimed_matching_pursuit_step(params, step, x, None)
}

/// [`matching_pursuit_step`] towards other targets than its input.
pub fn aimed_matching_pursuit_step(
    params: &Params<f64>,
    step: &MatchingPursuitStep,
    x: &[f64],
    aim: Option<Aim<'_>>,
) -> StepOutcome {
    let (d_in, d_sae) = (params.d_in(), params.d_sae());
    let n_tokens = x.len() / d_in;
    let scale = 1.0 / n_tokens as f64;
    // b_dec comes back in the end only if it was subtracted in the beginning.
    let a = f64::from(u8::from(step.apply_b_dec_to_input));
    let mut grads = params.zeros_like();
    let mut acts = vec![0.0; n_tokens * d_sae];
    let mut reconstruction = Vec::with_capacity(x.len());
    let mut mse = 0.0;
    for (b, x) in x.chunks_exact(d_in).enumerate() {
        let x_in: Vec<f64> = x.iter().zip(&params.b_dec).map(|(x, bias)| x - a * bias).collect();
        let path = pursue(params, &step.pursuit, &x_in);

        // f_i = sum of the v_t with i_t = i; xhat = f W_dec + a b_dec; mse = mean_b w_b |xhat - t|^2
        let f = &mut acts[b * d_sae..][..d_sae];
        path.chosen.iter().for_each(|&(i, value)| f[i] += value);
        let mut x_hat: Vec<f64> = params.b_dec.iter().map(|bias| a * bias).collect();
        for (i, &f) in f.iter().enumerate().filter(|(_, f)| **f != 0.0) {
            (0..d_in).for_each(|d| x_hat[d] += f * params.w_dec[i * d_in + d]);
        }
        let (target, weight) = aim.map_or((x, 1.0), |aim| (&aim.target[b * d_in..][..d_in], aim.weight[b]));
        let error: Vec<f64> = x_hat.iter().zip(target).map(|(x_hat, t)| x_hat - t).collect();
        mse += scale * weight * dot(&error, &error);
        reconstruction.extend(x_hat);

        // From the decoder: dW_dec,i += f_i g, db_dec += a g. Each v_t has the gradient g . d_i of its f_i.
        let g: Vec<f64> = error.iter().map(|e| 2.0 * scale * weight * e).collect();
        for (i, &f) in f.iter().enumerate().filter(|(_, f)| **f != 0.0) {
            (0..d_in).for_each(|d| grads.w_dec[i * d_in + d] += f * g[d]);
        }
        // Backwards through the residuals, with rho_t the gradient by r_t and rho_T = 0:
        // r_(t+1) = r_t - v_t d_i  gives  dv_t = g . d_i - rho_(t+1) . d_i  and  dd_i -= v_t rho_(t+1),
        // v_t = r_t . d_i          gives  rho_t = rho_(t+1) + dv_t d_i      and  dd_i += dv_t r_t.
        let mut rho = vec![0.0; d_in];
        for (&(i, value), r) in path.chosen.iter().zip(&path.residuals).rev() {
            let row = &params.w_dec[i * d_in..][..d_in];
            let d_value = dot(&g, row) - dot(&rho, row);
            for d in 0..d_in {
                grads.w_dec[i * d_in + d] += d_value * r[d] - value * rho[d];
                rho[d] += d_value * row[d];
            }
        }
        // r_0 = x - a b_dec
        (0..d_in).for_each(|d| grads.b_dec[d] += a * (g[d] - rho[d]));
    }
    let l0 = scale * acts.iter().filter(|&&act| act != 0.0).count() as f64;
    let losses = StepLosses { overall: mse, mse, sparsity: 0.0, auxiliary: 0.0, l0 };
    StepOutcome { losses, grads, acts, reconstruction }
}

#[cfg(test)]
mod tests {
    use super::super::super::testing::tied_problem;
    use super::super::tests::check;
    use super::*;

    #[test]
    fn gradients_are_those_of_the_loss() {
        for (residual_threshold, max_iterations, stop_on_duplicate_support) in
            [(0.0, 0, true), (0.7, 0, true), (0.0, 3, false), (0.5, 40, false)]
        {
            let problem = tied_problem(6, 9, 5, 4);
            let pursuit = Pursuit { residual_threshold, max_iterations, stop_on_duplicate_support };
            let (params, x) = (problem.params.to_f64(), problem.x64());
            let target: Vec<f64> = x.iter().map(|x| 1.1 * x - 0.05).collect();
            let weight = [0.3, 1.0, 2.0, 0.0, 1.5];
            for apply_b_dec_to_input in [false, true] {
                let step = MatchingPursuitStep { pursuit, apply_b_dec_to_input };
                for aim in [None, Some(Aim { target: &target, weight: &weight, width: 6 })] {
                    check(&format!("{step:?}"), &params, &|params| {
                        let outcome = aimed_matching_pursuit_step(params, &step, &x, aim);
                        (outcome.losses.overall, outcome.grads)
                    });
                }
            }
        }
    }

    #[test]
    fn a_token_by_hand() {
        // Rows (1, 0), (0, 1), (0.6, 0.8), whose products with (0.3, 1.4) are 0.3, 1.4 and 1.3; the rest (0.3, 0)
        // is then the first row's.
        let mut params = Params::tied_zeros(2, 3);
        params.w_dec = vec![1.0, 0.0, 0.0, 1.0, 0.6, 0.8];
        let pursuit = Pursuit { residual_threshold: 0.0, max_iterations: 0, stop_on_duplicate_support: true };
        assert_eq!(pursue(&params, &pursuit, &[0.3, 1.4]).chosen, [(1, 1.4), (0, 0.3)]);
        let near = Pursuit { residual_threshold: 0.31, ..pursuit };
        assert_eq!(pursue(&params, &near, &[0.3, 1.4]).chosen, [(1, 1.4)]);
        // Nothing points that way.
        assert!(pursue(&params, &pursuit, &[-1.0, -1.0]).chosen.is_empty());
    }
}
