//! Global clip and Adam, in one pass over parameters, gradients and both moments.
//!
//! The pass is bound by memory: 28 bytes a parameter, or 24 for latents without a gradient, whose gradient
//! rows are not read (see [`Params`]); their moments decay and their parameters move all the same.

use super::isa::Isa;
use super::lists::TILE;
use super::memory::Disjoint;
use super::params::Params;
use super::phase;
use super::pool::Pool;
use super::rows::square_of_row;
use super::simd::{Kernel, LANES, Simd};
use super::weights::has_no_gradient;

/// Latents per task.
const LATENTS: usize = 16;

/// Settings of one Adam step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamStep {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Number of this step, counted from 1.
    pub t: u64,
    /// Gradients are scaled so that their total L2 norm is at most this; infinity leaves them alone.
    pub max_grad_norm: f64,
}

impl AdamStep {
    /// What gradients of this total norm are multiplied with: `min(1, max / (norm + 1e-6))`; NaN stays NaN.
    pub fn clip_factor(&self, norm: f64) -> f64 {
        let factor = self.max_grad_norm / (norm + 1e-6);
        if factor > 1.0 { 1.0 } else { factor }
    }

    fn constants(&self, grad_norm: f64) -> Constants {
        let bias1 = 1.0 - self.beta1.powf(self.t as f64);
        let bias2 = 1.0 - self.beta2.powf(self.t as f64);
        Constants {
            clip: self.clip_factor(grad_norm) as f32,
            one_less_beta1: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            one_less_beta2: (1.0 - self.beta2) as f32,
            denominator_scale: (1.0 / bias2.sqrt()) as f32,
            eps: self.eps as f32,
            step_size: (self.lr / bias1) as f32,
        }
    }
}

/// Clips the gradients by their global norm and applies Adam in place. Returns the norm before clipping.
///
/// Semantics of `clip_grad_norm_` and `torch.optim.Adam`, see [`super::reference::clip_and_adam`]. When the
/// gradients are those that a step just wrote, [`adam`] with `Workspace::grad_norm` saves reading them twice.
pub fn clip_and_adam(
    pool: &Pool,
    params: &mut Params,
    grads: &Params,
    m: &mut Params,
    v: &mut Params,
    step: &AdamStep,
) -> f64 {
    let norm = norm_of_gradients(pool, grads);
    adam(pool, params, grads, m, v, step, norm);
    norm
}

/// As [`clip_and_adam`], for gradients whose total L2 norm is known.
pub fn adam(
    pool: &Pool,
    params: &mut Params,
    grads: &Params,
    m: &mut Params,
    v: &mut Params,
    step: &AdamStep,
    grad_norm: f64,
) {
    adam_with(pool, Isa::detect(), params, grads, m, v, step.constants(grad_norm));
}

/// Total L2 norm, squares summed in double precision over whole rows.
pub(super) fn norm_of_gradients(pool: &Pool, grads: &Params) -> f64 {
    let (d_in, d_sae) = (grads.d_in(), grads.d_sae());
    let mut squares = vec![0.0; d_sae.div_ceil(TILE)];
    let shared = Disjoint::new(&mut squares);
    let isa = Isa::detect();
    pool.run(d_sae.div_ceil(TILE), &|index| {
        // SAFETY: one element per task.
        let square = unsafe { shared.at(index) };
        isa.run(SquareTile { grads, d_in, latents: index * TILE..((index + 1) * TILE).min(d_sae), square });
    });
    let rest = grads.arrays().into_iter().skip(4).chain([&*grads.b_dec]).flatten();
    let rest: f64 = rest.map(|&value| f64::from(value) * f64::from(value)).sum();
    (squares.iter().sum::<f64>() + rest).sqrt()
}

struct SquareTile<'a> {
    grads: &'a Params,
    d_in: usize,
    latents: std::ops::Range<usize>,
    square: &'a mut f64,
}

impl Kernel for SquareTile<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let mut total = 0.0;
        for latent in self.latents {
            let b_enc = self.grads.b_enc[latent];
            if has_no_gradient(b_enc) {
                continue;
            }
            let range = latent * self.d_in..(latent + 1) * self.d_in;
            // SAFETY: this runs with the instructions of `S`; both are rows of D values.
            unsafe {
                if !self.grads.is_tied() {
                    let row = self.grads.w_enc[range.clone()].as_ptr();
                    total += f64::from(square_of_row::<S>(row, self.d_in));
                }
                total += f64::from(square_of_row::<S>(self.grads.w_dec[range].as_ptr(), self.d_in));
            }
            total += f64::from(b_enc) * f64::from(b_enc);
        }
        *self.square = total;
    }
}

/// Adam's settings in the precision of the parameters.
#[derive(Clone, Copy)]
struct Constants {
    clip: f32,
    one_less_beta1: f32,
    beta2: f32,
    one_less_beta2: f32,
    denominator_scale: f32,
    eps: f32,
    step_size: f32,
}

fn adam_with(
    pool: &Pool,
    isa: Isa,
    params: &mut Params,
    grads: &Params,
    m: &mut Params,
    v: &mut Params,
    constants: Constants,
) {
    let _phase = phase::adam();
    let (d_in, d_sae) = (params.d_in(), params.d_sae());
    for one in [&*params, grads, m, v] {
        one.check(d_in, d_sae);
        assert_eq!(one.is_tied(), params.is_tied(), "all four have the same arrays");
    }
    let share = |p: &mut Params| SharedParams { w_enc: p.w_enc.as_mut_ptr(), w_dec: p.w_dec.as_mut_ptr() };
    let (p, m_rows, v_rows) = (share(params), share(m), share(v));
    pool.run(d_sae.div_ceil(LATENTS), &|index| {
        let latents = index * LATENTS..((index + 1) * LATENTS).min(d_sae);
        isa.run(AdamRows { p: &p, m: &m_rows, v: &v_rows, grads, d_in, latents, constants });
    });
    let bias = |p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]| {
        isa.run(AdamSlice { p, g, m, v, constants });
    };
    bias(&mut params.b_enc, &grads.b_enc, &mut m.b_enc, &mut v.b_enc);
    bias(&mut params.b_dec, &grads.b_dec, &mut m.b_dec, &mut v.b_dec);
    bias(&mut params.threshold, &grads.threshold, &mut m.threshold, &mut v.threshold);
    bias(&mut params.r_mag, &grads.r_mag, &mut m.r_mag, &mut v.r_mag);
    bias(&mut params.b_mag, &grads.b_mag, &mut m.b_mag, &mut v.b_mag);
}

/// Both weight matrices, for tasks that each take their own rows.
struct SharedParams {
    w_enc: *mut f32,
    w_dec: *mut f32,
}

// SAFETY: tasks use the rows of different latents.
unsafe impl Sync for SharedParams {}

struct AdamRows<'a> {
    p: &'a SharedParams,
    m: &'a SharedParams,
    v: &'a SharedParams,
    grads: &'a Params,
    d_in: usize,
    latents: std::ops::Range<usize>,
    constants: Constants,
}

impl Kernel for AdamRows<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let (d_in, constants) = (self.d_in, self.constants);
        for latent in self.latents {
            let at = latent * d_in;
            let without = has_no_gradient(self.grads.b_enc[latent]);
            let (p, m, v, grads) = (self.p, self.m, self.v, self.grads);
            let matrices =
                [(p.w_enc, m.w_enc, v.w_enc, &grads.w_enc), (p.w_dec, m.w_dec, v.w_dec, &grads.w_dec)];
            // SAFETY: this runs with the instructions of `S`; all rows have D values, by the checks at entry,
            // and belong to this task's latents.
            unsafe {
                for (p, m, v, g) in matrices.into_iter().filter(|(.., g)| !g.is_empty()) {
                    let g = g[at..at + d_in].as_ptr();
                    if without {
                        update::<S, false>(p.add(at), g, m.add(at), v.add(at), d_in, &constants);
                    } else {
                        update::<S, true>(p.add(at), g, m.add(at), v.add(at), d_in, &constants);
                    }
                }
            }
        }
    }
}

struct AdamSlice<'a> {
    p: &'a mut [f32],
    g: &'a [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
    constants: Constants,
}

impl Kernel for AdamSlice<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let n = self.p.len();
        assert!(self.g.len() == n && self.m.len() == n && self.v.len() == n, "one value per parameter");
        let (p, m, v) = (self.p.as_mut_ptr(), self.m.as_mut_ptr(), self.v.as_mut_ptr());
        // SAFETY: this runs with the instructions of `S`; all four have `n` values.
        unsafe { update::<S, true>(p, self.g.as_ptr(), m, v, n, &self.constants) };
    }
}

/// Adam on `n` values; without `GRADIENT`, as if all gradients were 0.
#[inline(always)]
unsafe fn update<S: Simd, const GRADIENT: bool>(
    p: *mut f32,
    g: *const f32,
    m: *mut f32,
    v: *mut f32,
    n: usize,
    constants: &Constants,
) {
    // SAFETY: the caller's: instructions enabled, all four valid for `n` values.
    unsafe {
        let mut at = 0;
        while at + LANES <= n {
            let gradient = if GRADIENT { S::load(g.add(at)) } else { S::splat(0.0) };
            let [p1, m1, v1] = updated::<S, GRADIENT>(
                S::load(p.add(at)),
                gradient,
                S::load(m.add(at)),
                S::load(v.add(at)),
                constants,
            );
            S::store(p.add(at), p1);
            S::store(m.add(at), m1);
            S::store(v.add(at), v1);
            at += LANES;
        }
        if at < n {
            let rest = n - at;
            let gradient = if GRADIENT { S::load_part(g.add(at), rest) } else { S::splat(0.0) };
            let [p1, m1, v1] = updated::<S, GRADIENT>(
                S::load_part(p.add(at), rest),
                gradient,
                S::load_part(m.add(at), rest),
                S::load_part(v.add(at), rest),
                constants,
            );
            S::store_part(p.add(at), p1, rest);
            S::store_part(m.add(at), m1, rest);
            S::store_part(v.add(at), v1, rest);
        }
    }
}

/// m += (g - m) (1 - beta1);  v = beta2 v + (1 - beta2) g^2;  p -= step m / (sqrt(v) / sqrt(bias2) + eps)
#[inline(always)]
unsafe fn updated<S: Simd, const GRADIENT: bool>(
    p: S::V,
    g: S::V,
    m: S::V,
    v: S::V,
    constants: &Constants,
) -> [S::V; 3] {
    // SAFETY: instructions enabled.
    unsafe {
        let g = if GRADIENT { S::mul(g, S::splat(constants.clip)) } else { g };
        let m = S::fma(S::sub(g, m), S::splat(constants.one_less_beta1), m);
        let decayed = S::mul(v, S::splat(constants.beta2));
        let v = if GRADIENT {
            S::fma(S::mul(g, g), S::splat(constants.one_less_beta2), decayed)
        } else {
            decayed
        };
        let below = S::fma(S::sqrt(v), S::splat(constants.denominator_scale), S::splat(constants.eps));
        let step = S::div(S::mul(m, S::splat(constants.step_size)), below);
        [S::sub(p, step), m, v]
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::super::testing::{Numbers, bits, check_close, check_loss};
    use super::super::weights::NO_GRADIENT;
    use super::*;

    fn random(d_in: usize, d_sae: usize, scale: f32, numbers: &mut Numbers) -> Params {
        let mut params = Params::zeros(d_in, d_sae);
        params.threshold = vec![0.0; d_sae];
        (params.r_mag, params.b_mag) = (vec![0.0; d_sae], vec![0.0; d_sae]);
        for array in params.arrays_mut() {
            array.fill_with(|| scale * numbers.grid(1 << 20));
        }
        params
    }

    #[test]
    fn follows_the_reference_over_several_steps() {
        let mut numbers = Numbers(1);
        for (d_in, d_sae) in [(1, 1), (15, 97), (16, 16), (33, 130)] {
            for max_grad_norm in [1.0, f64::INFINITY] {
                for isa in Isa::available() {
                    let pool = Pool::new(2);
                    let mut p = random(d_in, d_sae, 1.0, &mut numbers);
                    let (mut m, mut v) = (p.zeros_like(), p.zeros_like());
                    let (mut p64, mut m64, mut v64) = (p.to_f64(), m.to_f64(), v.to_f64());
                    for t in 1..=5 {
                        let grads = random(d_in, d_sae, 0.5, &mut numbers);
                        let step =
                            AdamStep { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, t, max_grad_norm };
                        let expected =
                            reference::clip_and_adam(&mut p64, &grads.to_f64(), &mut m64, &mut v64, &step);
                        let norm = norm_of_gradients(&pool, &grads);
                        check_loss("norm", norm, expected);
                        adam_with(&pool, isa, &mut p, &grads, &mut m, &mut v, step.constants(norm));
                    }
                    check_close("w_enc", &p.w_enc, &p64.w_enc);
                    check_close("w_dec", &p.w_dec, &p64.w_dec);
                    check_close("b_enc", &p.b_enc, &p64.b_enc);
                    check_close("b_dec", &p.b_dec, &p64.b_dec);
                    check_close("threshold", &p.threshold, &p64.threshold);
                }
            }
        }
    }

    #[test]
    fn marked_rows_are_updated_as_if_their_zeros_were_read() {
        let mut numbers = Numbers(2);
        let (d_in, d_sae) = (17, 40);
        let mut grads = random(d_in, d_sae, 0.5, &mut numbers);
        for latent in [0, 3, 4, 39] {
            grads.w_enc[latent * d_in..][..d_in].fill(0.0);
            grads.w_dec[latent * d_in..][..d_in].fill(0.0);
            grads.b_enc[latent] = 0.0;
        }
        let start = [1.0, 0.1].map(|scale| random(d_in, d_sae, scale, &mut numbers));
        let mut squares = random(d_in, d_sae, 0.1, &mut numbers);
        for array in squares.arrays_mut() {
            array.iter_mut().for_each(|value| *value *= *value);
        }
        let step = AdamStep { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, t: 3, max_grad_norm: 1.0 };
        let run = |grads: &Params, threads: usize| {
            let ([mut p, mut m], mut v) = (start.clone(), squares.clone());
            let norm = clip_and_adam(&Pool::new(threads), &mut p, grads, &mut m, &mut v, &step);
            (norm.to_bits(), bits(&p), bits(&m), bits(&v))
        };
        let read = run(&grads, 1);
        for latent in [0, 3, 4, 39] {
            grads.b_enc[latent] = NO_GRADIENT;
        }
        for threads in [1, 2, 3] {
            assert_eq!(read, run(&grads, threads));
        }
    }

    #[test]
    fn a_norm_that_is_not_a_number_is_not_hidden() {
        let step = AdamStep { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, t: 1, max_grad_norm: 1.0 };
        assert!(step.clip_factor(f64::NAN).is_nan());
        assert_eq!(step.clip_factor(0.5), 1.0);
        assert!((step.clip_factor(4.0) - 0.25).abs() < 1e-6);
    }
}
