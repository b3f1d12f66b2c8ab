//! Problems for tests: awkward shapes, chosen densities, and numbers on a grid so coarse that every
//! pre-activation is exact in single precision. So the kernels and the double-precision reference agree on
//! which latents are active, ties included, and only rounding is left to compare.

use super::isa::Isa;
use super::matching_pursuit::MatchingPursuitStep;
use super::params::{Params, Shape};
use super::pool::Pool;
use super::reference::{self, StepOutcome};
use super::workspace::Workspace;

/// Largest deviation allowed, relative to the largest magnitude of the array compared. Measured: below 1e-6.
pub(crate) const TOLERANCE: f64 = 3e-6;

/// Small pseudo-random numbers (SplitMix64).
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A multiple of `1 / parts` between -1 and 1.
    pub(crate) fn grid(&mut self, parts: i32) -> f32 {
        let choices = 2 * parts as u64 + 1;
        ((self.next() % choices) as i32 - parts) as f32 / parts as f32
    }
}

/// A batch and the parameters it meets.
pub(crate) struct Problem {
    pub(crate) shape: Shape,
    pub(crate) params: Params,
    pub(crate) x: Vec<f32>,
}

impl Problem {
    /// `shift` is added to every `b_enc`: very negative, no latent is active; very positive, all are.
    pub(crate) fn new(d_in: usize, d_sae: usize, batch: usize, shift: f32, seed: u64) -> Self {
        let mut numbers = Numbers(seed);
        let mut params = Params::zeros(d_in, d_sae);
        params.w_enc.fill_with(|| numbers.grid(16));
        params.w_dec.fill_with(|| numbers.grid(16));
        params.b_dec.fill_with(|| numbers.grid(8));
        // Half a grid step keeps every pre-activation away from 0.
        params.b_enc.fill_with(|| shift + numbers.grid(128) + 1.0 / 256.0);
        let x = (0..batch * d_in).map(|_| 2.0 * numbers.grid(16)).collect();
        Self { shape: Shape { d_in, d_sae, batch }, params, x }
    }

    /// The same with decoder rows of four equal entries up to sign, for D of 4 and more: their norms are exact, so a
    /// choice by `pre * norm` has one right answer in single and in double precision.
    pub(crate) fn with_exact_norms(mut self, seed: u64) -> Self {
        let mut numbers = Numbers(seed ^ 0x5851_F42D);
        let d_in = self.shape.d_in;
        assert!(d_in >= 4, "a row holds four entries");
        for row in self.params.w_dec.chunks_exact_mut(d_in) {
            row.fill(0.0);
            let (first, size) = (numbers.next() as usize % d_in, (1 + numbers.next() % 16) as f32 / 16.0);
            for place in 0..4 {
                let sign = if numbers.next().is_multiple_of(2) { 1.0 } else { -1.0 };
                row[(first + place) % d_in] = sign * size;
            }
        }
        self
    }

    pub(crate) fn x64(&self) -> Vec<f64> {
        self.x.iter().map(|&value| f64::from(value)).collect()
    }

    /// Gradients that hold rubbish, as a caller's may.
    pub(crate) fn dirty_grads(&self) -> Params {
        let mut grads = self.params.zeros_like();
        grads.w_enc.fill(7.0);
        grads.w_dec.fill(f32::NAN);
        grads.b_enc.fill(-3.0);
        grads.b_dec.fill(5.0);
        grads.threshold = vec![9.0; self.params.threshold.len()];
        grads.r_mag = vec![9.0; self.params.r_mag.len()];
        grads.b_mag = vec![9.0; self.params.b_mag.len()];
        grads
    }

    pub(crate) fn workspace(&self, pool: &Pool, isa: Isa) -> Workspace {
        Workspace::with_isa(self.shape, pool, isa)
    }
}

/// A batch for a tied SAE: numbers without a grid, since residuals leave every grid, and rows of norms about 1.
pub(crate) fn tied_problem(d_in: usize, d_sae: usize, batch: usize, seed: u64) -> Problem {
    let mut numbers = Numbers(seed);
    let mut params = Params::tied_zeros(d_in, d_sae);
    params.w_dec.fill_with(|| numbers.grid(1 << 20));
    for row in params.w_dec.chunks_exact_mut(d_in) {
        let norm = row.iter().map(|w| w * w).sum::<f32>().sqrt().max(1e-3);
        let wanted = 1.0 + 0.2 * numbers.grid(1 << 20);
        row.iter_mut().for_each(|w| *w *= wanted / norm);
    }
    params.b_dec.fill_with(|| 0.3 * numbers.grid(1 << 20));
    let x = (0..batch * d_in).map(|_| 2.0 * numbers.grid(1 << 20)).collect();
    Problem { shape: Shape { d_in, d_sae, batch }, params, x }
}

/// Whether no decision of a pursuit is so near to going another way that rounding may decide it.
pub(crate) fn is_far_from_ties(problem: &Problem, step: &MatchingPursuitStep) -> bool {
    let params = problem.params.to_f64();
    let x_in = reference::encoder_input(&params, step.apply_b_dec_to_input, &problem.x64());
    let margin = |x: &[f64]| reference::pursue(&params, &step.pursuit, x).margin;
    x_in.chunks_exact(problem.shape.d_in).map(margin).fold(f64::INFINITY, f64::min) > 5e-6
}

/// One with thresholds off the grid of pre-activations, and some at 0, and dead latents.
pub(crate) fn jumprelu_problem(
    d_in: usize,
    d_sae: usize,
    batch: usize,
    shift: f32,
    seed: u64,
) -> (Problem, Vec<bool>) {
    let mut problem = Problem::new(d_in, d_sae, batch, shift, seed);
    let mut numbers = Numbers(seed + 1);
    problem.params.threshold = (0..d_sae).map(|_| (numbers.grid(64) + 1.0 / 512.0).max(0.0)).collect();
    let dead = (0..d_sae).map(|_| numbers.next().is_multiple_of(4)).collect();
    (problem, dead)
}

/// One with magnitudes off the grid of gates.
pub(crate) fn gated_problem(d_in: usize, d_sae: usize, batch: usize, shift: f32, seed: u64) -> Problem {
    let mut problem = Problem::new(d_in, d_sae, batch, shift, seed);
    let mut numbers = Numbers(seed + 1);
    problem.params.r_mag = (0..d_sae).map(|_| numbers.grid(64)).collect();
    problem.params.b_mag = (0..d_sae).map(|_| 2.0 * numbers.grid(64) + 1.0 / 512.0).collect();
    problem
}

/// Awkward sizes (d_in, d_sae, batch): ones, primes, lane width and its neighbours, whole tiles and not. Random sizes
/// begin at 4 and 16: with fewer, a whole array of gradients may by chance be the little that is left of large sums,
/// and then is all rounding.
pub(crate) const SHAPES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (2, 3, 5),
    (15, 95, 31),
    (16, 96, 32),
    (17, 97, 33),
    (31, 200, 7),
    (64, 193, 65),
    (67, 131, 37),
    (80, 24, 64),
];

/// Shifts of `b_enc` from no active latent to all of them.
pub(crate) const SHIFTS: [f32; 5] = [-1000.0, -4.0, -1.0, 0.0, 1000.0];

/// Panics unless `found` equals `expected` within [`TOLERANCE`] of the largest expected value.
pub(crate) fn check_close(what: &str, found: &[f32], expected: &[f64]) {
    check_close_to(what, found, expected, 0.0);
}

/// [`check_close`], where the values are what is left of terms as large as `terms`.
fn check_close_to(what: &str, found: &[f32], expected: &[f64], terms: f64) {
    assert_eq!(found.len(), expected.len(), "{what}: lengths");
    let largest = expected.iter().fold(terms, |largest, value| largest.max(value.abs()));
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let deviation = (f64::from(found) - expected).abs();
        assert!(
            deviation <= TOLERANCE * largest,
            "{what}[{i}] is {found}, the reference says {expected}; off by {:.1e} of {largest:.1e}",
            deviation / largest
        );
    }
}

/// [`check_close`] for all arrays of the gradients. That of `b_dec` is a sum over tokens, less one through the encoder
/// where `b_dec` goes into that too, and may nearly cancel (with d_in = 1 no larger value stands beside it): its
/// rounding is measured against the terms of these sums.
pub(crate) fn check_grads(
    what: &str,
    problem: &Problem,
    apply_b_dec_to_input: bool,
    found: &Params,
    outcome: &StepOutcome,
) {
    let (params, expected) = (&problem.params, &outcome.grads);
    check_close(&format!("{what} w_enc"), &found.w_enc, &expected.w_enc);
    check_close(&format!("{what} w_dec"), &found.w_dec, &expected.w_dec);
    check_close(&format!("{what} b_enc"), &found.b_enc, &expected.b_enc);
    check_close(&format!("{what} threshold"), &found.threshold, &expected.threshold);
    check_close(&format!("{what} r_mag"), &found.r_mag, &expected.r_mag);
    check_close(&format!("{what} b_mag"), &found.b_mag, &expected.b_mag);

    let d_in = params.d_in();
    let mut terms = vec![0.0; d_in];
    let scale = 2.0 / problem.shape.batch as f64;
    let rows = outcome.reconstruction.chunks_exact(d_in).zip(problem.x.chunks_exact(d_in));
    for (x_hat, x) in rows {
        for ((term, x_hat), x) in terms.iter_mut().zip(x_hat).zip(x) {
            *term += scale * (x_hat - f64::from(*x)).abs();
        }
    }
    if apply_b_dec_to_input {
        for (f, row) in params.w_enc.chunks_exact(d_in).enumerate() {
            let r_mag = params.r_mag.get(f);
            let magnitude = r_mag.map_or(0.0, |r_mag| expected.b_mag[f].abs() * f64::from(*r_mag).exp());
            for (term, weight) in terms.iter_mut().zip(row) {
                *term += (expected.b_enc[f].abs() + magnitude) * f64::from(weight.abs());
            }
        }
    }
    let terms = terms.into_iter().fold(0.0, f64::max);
    check_close_to(&format!("{what} b_dec"), &found.b_dec, &expected.b_dec, terms);
}

/// Checks losses and gradients of a tied SAE. A pursuit may leave next to nothing of a token, and the rounding of what is
/// left is that of the token: deviations are measured against errors of a tenth of the token's size, too.
pub(crate) fn check_tied(what: &str, problem: &Problem, (mse, found): (f64, &Params), outcome: &StepOutcome) {
    let (d_in, expected) = (problem.shape.d_in, &outcome.grads);
    assert!(found.is_tied() && found.b_enc.iter().all(|&g| g == 0.0), "{what}: there is no encoder");
    let norms =
        problem.x.chunks_exact(d_in).map(|x| x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt());
    let size = norms.fold(0.0, f64::max);
    let slope = 0.2 * size / problem.shape.batch as f64;
    check_close_to(&format!("{what} mse"), &[mse as f32], &[outcome.losses.mse], 0.01 * size * size);
    check_close_to(&format!("{what} w_dec"), &found.w_dec, &expected.w_dec, slope * size);
    check_close_to(&format!("{what} b_dec"), &found.b_dec, &expected.b_dec, slope);
}

/// Panics unless the two losses agree within [`TOLERANCE`].
pub(crate) fn check_loss(what: &str, found: f64, expected: f64) {
    let deviation = (found - expected).abs();
    assert!(deviation <= TOLERANCE * expected.abs(), "{what} is {found}, the reference says {expected}");
}

/// The bits of all values, so that NaN and signed zeros compare too.
pub(crate) fn bits(params: &Params) -> Vec<u32> {
    params.arrays().iter().flat_map(|array| array.iter().map(|value| value.to_bits())).collect()
}
