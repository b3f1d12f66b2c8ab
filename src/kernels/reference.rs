//! The specification: every step dense, in double precision, one formula a line.
//!
//! Formulas follow SAELens 6.54 (`standard_sae.py`, `topk_sae.py`, `sae_trainer.py`). Shapes: x (B, D),
//! weights (F, D), activations (B, F). The kernels are tested against this file, and this file against
//! finite differences of its own losses. It is slow and meant to be.

mod gated;
mod jumprelu;
mod matryoshka;
mod topk;

pub use gated::gated_step;
pub use jumprelu::{aimed_jumprelu_step, jumprelu_step};
pub use matryoshka::matryoshka_step;
pub use topk::{abs_topk_step, aimed_topk_step, batch_topk_step, topk_step};

use super::adam::AdamStep;
use super::params::Params;
use super::standard::StandardStep;
use super::workspace::StepLosses;

/// What a step gives.
#[derive(Debug, Clone)]
pub struct StepOutcome {
    /// The losses before the update.
    pub losses: StepLosses,
    /// Gradients of `losses.overall`.
    pub grads: Params<f64>,
    /// Activations after the activation function, (B, F), in units in which `acts W_dec + b_dec` decodes.
    pub acts: Vec<f64>,
    /// Reconstruction, (B, D).
    pub reconstruction: Vec<f64>,
}

/// What the reconstruction of each token is compared with, and how much its error counts, where that is not
/// the input itself and 1: the error of token b is `weight[b] |xhat_b - target_b|^2`.
#[derive(Debug, Clone, Copy)]
pub struct Aim<'a> {
    /// (B, D).
    pub target: &'a [f64],
    /// (B).
    pub weight: &'a [f64],
}

/// One standard step (ReLU, L1 weighted by decoder norms); Bricken et al. 2023, Conerly et al. 2024.
pub fn standard_step(params: &Params<f64>, step: &StandardStep, x: &[f64]) -> StepOutcome {
    aimed_standard_step(params, step, x, None)
}

/// [`standard_step`] towards other targets than its input.
pub fn aimed_standard_step(
    params: &Params<f64>,
    step: &StandardStep,
    x: &[f64],
    aim: Option<Aim<'_>>,
) -> StepOutcome {
    let sizes = Sizes::new(params, x);
    let (d_in, d_sae, n_tokens) = (sizes.d_in, sizes.d_sae, sizes.n_tokens);
    let scale = 1.0 / n_tokens as f64;

    // pre = (x - a b_dec) W_enc^T + b_enc; f = relu(pre)
    let x_in = encoder_input(params, step.apply_b_dec_to_input, x);
    let pre = pre_activations(params, &x_in);
    let acts: Vec<f64> = pre.iter().map(|&value| relu(value)).collect();
    let reconstruction = decoded(params, &acts, n_tokens);
    let norms = decoder_norms(params);

    // mse = mean_b w_b |xhat - t|^2, by default w = 1 and t = x
    let target = aim.map_or(x, |aim| aim.target);
    let weight = |i: usize| aim.map_or(1.0, |aim| aim.weight[i / d_in]);
    let error: Vec<f64> = reconstruction.iter().zip(target).map(|(a, b)| a - b).collect();
    let mse = scale * error.iter().enumerate().map(|(i, e)| weight(i) * e * e).sum::<f64>();

    // l1 = lambda mean_b | f_b * n |_p, with n_i = |W_dec,i|
    let p = step.lp_norm;
    let mut weighted_norms = vec![0.0; n_tokens];
    for b in 0..n_tokens {
        let total: f64 = (0..d_sae).map(|f| power(acts[b * d_sae + f] * norms[f], p)).sum();
        weighted_norms[b] = if p == 1.0 { total } else { total.powf(1.0 / p) };
    }
    let sparsity = step.l1_coefficient * scale * weighted_norms.iter().sum::<f64>();

    // With y = f * n: d|y|_p / dy_i = (y_i / |y|_p)^(p - 1), and 0 where y_i = 0.
    let mut grads = Params::zeros(d_in, d_sae);
    let mut d_pre = vec![0.0; n_tokens * d_sae];
    let mut d_norms = vec![0.0; d_sae];
    let g: Vec<f64> = error.iter().enumerate().map(|(i, e)| 2.0 * scale * weight(i) * e).collect();
    for b in 0..n_tokens {
        for f in 0..d_sae {
            let act = acts[b * d_sae + f];
            if act == 0.0 {
                continue;
            }
            let slope = slope_of_p_norm(act * norms[f], weighted_norms[b], p);
            let d_act = dot(&g[b * d_in..][..d_in], &params.w_dec[f * d_in..][..d_in])
                + step.l1_coefficient * scale * norms[f] * slope;
            d_pre[b * d_sae + f] = d_act;
            d_norms[f] += step.l1_coefficient * scale * act * slope;
        }
    }
    sizes.add_decoder_gradients(&mut grads, &acts, &g);
    sizes.add_encoder_gradients(&mut grads, &d_pre, &x_in);
    sizes.add_norm_gradients(&mut grads, params, &d_norms, &norms);
    sizes.add_decoder_bias_gradient(&mut grads, params, &g, step.apply_b_dec_to_input);

    let l0 = scale * acts.iter().filter(|&&act| act != 0.0).count() as f64;
    let losses = StepLosses { overall: mse + sparsity, mse, sparsity, auxiliary: 0.0, l0 };
    StepOutcome { losses, grads, acts, reconstruction }
}

/// Global clip (`torch.nn.utils.clip_grad_norm_`), then Adam (`torch.optim.Adam`, Kingma and Ba 2015).
/// Returns the norm before clipping.
pub fn clip_and_adam(
    params: &mut Params<f64>,
    grads: &Params<f64>,
    m: &mut Params<f64>,
    v: &mut Params<f64>,
    step: &AdamStep,
) -> f64 {
    let total: f64 = grads.arrays().iter().flat_map(|array| array.iter()).map(|g| g * g).sum();
    let norm = total.sqrt();
    let clip = step.clip_factor(norm);
    let bias1 = 1.0 - step.beta1.powf(step.t as f64);
    let bias2 = 1.0 - step.beta2.powf(step.t as f64);
    let update = |p: &mut [f64], g: &[f64], m: &mut [f64], v: &mut [f64]| {
        for i in 0..p.len() {
            let g = g[i] * clip;
            m[i] = step.beta1 * m[i] + (1.0 - step.beta1) * g;
            v[i] = step.beta2 * v[i] + (1.0 - step.beta2) * g * g;
            p[i] -= step.lr / bias1 * m[i] / (v[i].sqrt() / bias2.sqrt() + step.eps);
        }
    };
    let arrays = params.arrays_mut().into_iter().zip(grads.arrays()).zip(m.arrays_mut()).zip(v.arrays_mut());
    for (((p, g), m), v) in arrays {
        update(p, g, m, v);
    }
    norm
}

/// Takes from each decoder row's gradient the part along the row, and returns the total norm of what is left
/// (Bricken et al. 2023, appendix "Advice for Training Sparse Autoencoders").
pub fn remove_parallel(params: &Params<f64>, grads: &mut Params<f64>) -> f64 {
    let d_in = params.d_in();
    for (g, w) in grads.w_dec.chunks_exact_mut(d_in).zip(params.w_dec.chunks_exact(d_in)) {
        let (along, square) = (dot(g, w), dot(w, w));
        if square > 0.0 {
            g.iter_mut().zip(w).for_each(|(g, w)| *g -= along / square * w);
        }
    }
    grads.arrays().iter().flat_map(|array| array.iter()).map(|g| g * g).sum::<f64>().sqrt()
}

/// `x - a b_dec`, (B, D).
pub fn encoder_input(params: &Params<f64>, apply_b_dec_to_input: bool, x: &[f64]) -> Vec<f64> {
    let a = f64::from(u8::from(apply_b_dec_to_input));
    x.iter().enumerate().map(|(i, value)| value - a * params.b_dec[i % params.d_in()]).collect()
}

/// `x_in W_enc^T + b_enc`, (B, F).
pub fn pre_activations(params: &Params<f64>, x_in: &[f64]) -> Vec<f64> {
    let (d_in, d_sae) = (params.d_in(), params.d_sae());
    let mut pre = Vec::with_capacity(x_in.len() / d_in * d_sae);
    for token in x_in.chunks_exact(d_in) {
        pre.extend((0..d_sae).map(|f| dot(token, &params.w_enc[f * d_in..][..d_in]) + params.b_enc[f]));
    }
    pre
}

/// `acts W_dec + b_dec`, (B, D).
pub fn decoded(params: &Params<f64>, acts: &[f64], n_tokens: usize) -> Vec<f64> {
    let (d_in, d_sae) = (params.d_in(), params.d_sae());
    let mut out = Vec::with_capacity(n_tokens * d_in);
    for b in 0..n_tokens {
        let mut row = params.b_dec.clone();
        for f in 0..d_sae {
            (0..d_in).for_each(|d| row[d] += acts[b * d_sae + f] * params.w_dec[f * d_in + d]);
        }
        out.extend(row);
    }
    out
}

/// `|W_dec,i|` for every latent, (F).
pub fn decoder_norms(params: &Params<f64>) -> Vec<f64> {
    params.w_dec.chunks_exact(params.d_in()).map(|row| dot(row, row).sqrt()).collect()
}

/// Indices of the `k` largest values among those allowed, in rising order of index. Of equal values the
/// lower index wins; NaN counts as larger than every number.
pub fn largest(values: &[f64], k: usize, allowed: impl Fn(usize) -> bool) -> Vec<usize> {
    let rank = |i: usize| if values[i].is_nan() { f64::INFINITY } else { values[i] };
    let mut order: Vec<usize> = (0..values.len()).filter(|&i| allowed(i)).collect();
    order.sort_by(|&i, &j| rank(j).total_cmp(&rank(i)).then(i.cmp(&j)));
    order.truncate(k);
    order.sort_unstable();
    order
}

struct Sizes {
    d_in: usize,
    d_sae: usize,
    n_tokens: usize,
}

impl Sizes {
    fn new(params: &Params<f64>, x: &[f64]) -> Self {
        let (d_in, d_sae) = (params.d_in(), params.d_sae());
        params.check(d_in, d_sae);
        assert_eq!(x.len() % d_in, 0, "x is (B, D)");
        Self { d_in, d_sae, n_tokens: x.len() / d_in }
    }

    /// dW_dec += f^T g
    fn add_decoder_gradients(&self, grads: &mut Params<f64>, acts: &[f64], g: &[f64]) {
        self.add_outer(&mut grads.w_dec, acts, g);
    }

    /// n_i is in the graph: d n_i / d W_dec,i = W_dec,i / n_i, and 0 at 0.
    fn add_norm_gradients(
        &self,
        grads: &mut Params<f64>,
        params: &Params<f64>,
        d_norms: &[f64],
        norms: &[f64],
    ) {
        for f in (0..self.d_sae).filter(|&f| norms[f] > 0.0) {
            for at in f * self.d_in..(f + 1) * self.d_in {
                grads.w_dec[at] += d_norms[f] * params.w_dec[at] / norms[f];
            }
        }
    }

    /// dW_enc += dpre^T x_in; db_enc += sum_b dpre
    fn add_encoder_gradients(&self, grads: &mut Params<f64>, d_pre: &[f64], x_in: &[f64]) {
        self.add_outer(&mut grads.w_enc, d_pre, x_in);
        for row in d_pre.chunks_exact(self.d_sae) {
            (0..self.d_sae).for_each(|f| grads.b_enc[f] += row[f]);
        }
    }

    /// db_dec += sum_b g - a (sum_b dpre) W_enc
    fn add_decoder_bias_gradient(
        &self,
        grads: &mut Params<f64>,
        params: &Params<f64>,
        g: &[f64],
        apply_b_dec_to_input: bool,
    ) {
        for row in g.chunks_exact(self.d_in) {
            (0..self.d_in).for_each(|d| grads.b_dec[d] += row[d]);
        }
        if apply_b_dec_to_input {
            for f in 0..self.d_sae {
                let total = grads.b_enc[f];
                (0..self.d_in).for_each(|d| grads.b_dec[d] -= total * params.w_enc[f * self.d_in + d]);
            }
        }
    }

    /// out (F, D) += left^T right, left (B, F), right (B, D)
    fn add_outer(&self, out: &mut [f64], left: &[f64], right: &[f64]) {
        for b in 0..self.n_tokens {
            for f in 0..self.d_sae {
                let value = left[b * self.d_sae + f];
                for d in 0..self.d_in {
                    out[f * self.d_in + d] += value * right[b * self.d_in + d];
                }
            }
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// relu that lets NaN through, so that a broken step shows in its loss.
fn relu(value: f64) -> f64 {
    if value <= 0.0 { 0.0 } else { value }
}

fn power(y: f64, p: f64) -> f64 {
    if p == 1.0 || y == 0.0 { y } else { y.powf(p) }
}

fn slope_of_p_norm(y: f64, norm: f64, p: f64) -> f64 {
    if p == 1.0 {
        1.0
    } else if y == 0.0 {
        0.0
    } else {
        (y / norm).powf(p - 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Problem;
    use super::super::topk::TopKStep;
    use super::*;

    pub(super) type Loss<'a> = dyn Fn(&Params<f64>) -> (f64, Params<f64>) + 'a;

    /// Compares every gradient with a central difference of the loss.
    pub(super) fn check(what: &str, params: &Params<f64>, loss: &Loss<'_>) {
        const STEP: f64 = 1e-6;
        let (value, grads) = loss(params);
        for (nth, gradients) in grads.arrays().into_iter().enumerate() {
            for (i, &gradient) in gradients.iter().enumerate() {
                let shifted = |by: f64| {
                    let mut params = params.clone();
                    params.arrays_mut()[nth][i] += by;
                    loss(&params).0
                };
                let slope = (shifted(STEP) - shifted(-STEP)) / (2.0 * STEP);
                // What rounding of the loss leaves of a difference quotient, and the curvature.
                let scale = 1.0 + gradient.abs() + 1e-3 * value.abs();
                assert!(
                    (slope - gradient).abs() < 1e-6 * scale,
                    "{what} array {nth}[{i}]: {gradient}, {slope}"
                );
            }
        }
    }

    #[test]
    fn standard_gradients_are_those_of_the_loss() {
        for shift in [-1.0, 0.5, 10.0] {
            let problem = Problem::new(5, 7, 4, shift, 3);
            for (lp_norm, apply_b_dec_to_input) in [(1.0, false), (1.0, true), (2.0, true), (1.5, false)] {
                let step = StandardStep { l1_coefficient: 0.7, lp_norm, apply_b_dec_to_input };
                check(&format!("{step:?}"), &problem.params.to_f64(), &|params| {
                    let outcome = standard_step(params, &step, &problem.x64());
                    (outcome.losses.overall, outcome.grads)
                });
            }
        }
    }

    #[test]
    fn topk_gradients_are_those_of_the_loss() {
        let problem = Problem::new(6, 9, 4, 0.3, 4);
        let (params, x) = (problem.params.to_f64(), problem.x64());
        let none = [false; 9];
        for rescale_acts_by_decoder_norm in [false, true] {
            for apply_b_dec_to_input in [false, true] {
                let step = TopKStep {
                    k: 3,
                    aux_loss_coefficient: 0.8,
                    normalize_aux_loss: false,
                    rescale_acts_by_decoder_norm,
                    apply_b_dec_to_input,
                };
                check(&format!("{step:?}"), &params, &|params| {
                    let outcome = topk_step(params, &step, &none, &x);
                    (outcome.losses.overall, outcome.grads)
                });
            }
        }
    }

    /// The auxiliary loss holds the residual constant, so its gradients are those of a loss in which the
    /// residual does not move.
    #[test]
    fn auxiliary_gradients_hold_the_residual_constant() {
        let problem = Problem::new(6, 9, 4, 0.3, 5);
        let (params, x) = (problem.params.to_f64(), problem.x64());
        let dead = [true, false, true, true, false, false, true, true, false];
        for (rescale_acts_by_decoder_norm, normalize_aux_loss) in
            [(false, false), (true, false), (false, true), (true, true)]
        {
            let step = TopKStep {
                k: 2,
                aux_loss_coefficient: 0.8,
                normalize_aux_loss,
                rescale_acts_by_decoder_norm,
                apply_b_dec_to_input: true,
            };
            let fixed = topk_step(&params, &step, &dead, &x).reconstruction;
            let weight = if normalize_aux_loss {
                let error = |b: usize, d: usize| x[b * 6 + d] - fixed[b * 6 + d];
                let mean = |d: usize| (0..4).map(|b| error(b, d)).sum::<f64>() / 4.0;
                let around = |d: usize| (0..4).map(|b| (error(b, d) - mean(d)).powi(2)).sum::<f64>() / 4.0;
                0.8 / (0..6).map(around).sum::<f64>()
            } else {
                0.8
            };
            check(&format!("{step:?}"), &params, &|params| {
                let whole = topk_step(params, &step, &dead, &x);
                // k' = min(6 / 2, 5), scale = min(5 / 3, 1)
                let pre = pre_activations(params, &encoder_input(params, true, &x));
                let norms = decoder_norms(params);
                let mut aux = 0.0;
                for b in 0..4 {
                    let row = &pre[b * 9..][..9];
                    let order: Vec<f64> = (0..9)
                        .map(|f| if rescale_acts_by_decoder_norm { row[f] * norms[f] } else { row[f] })
                        .collect();
                    let chosen = largest(&order, 3, |f| dead[f]);
                    for d in 0..6 {
                        let made: f64 = chosen.iter().map(|&f| row[f] * params.w_dec[f * 6 + d]).sum();
                        aux += (made - (x[b * 6 + d] - fixed[b * 6 + d])).powi(2);
                    }
                }
                (whole.losses.mse + weight * aux / 4.0, whole.grads)
            });
        }
    }

    #[test]
    fn largest_prefers_the_lower_index_and_puts_nan_first() {
        assert_eq!(largest(&[1.0, 3.0, 3.0, 3.0, 0.0], 2, |_| true), [1, 2]);
        assert_eq!(largest(&[1.0, 3.0, f64::NAN, 3.0], 2, |_| true), [1, 2]);
        assert_eq!(largest(&[1.0, 3.0, 2.0], 9, |f| f != 1), [0, 2]);
        assert_eq!(largest(&[1.0], 0, |_| true), [0; 0]);
    }
}
