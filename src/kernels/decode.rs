//! The middle of a step, token by token: decode, error, and what each active latent is pulled by.
//!
//! A token's decoder rows are read twice in a row, for the reconstruction and for the gradients of its
//! activations, the second time from the second-level cache.

use super::isa::Isa;
use super::lists::Rows;
use super::memory::{Disjoint, Spares};
use super::params::Params;
use super::pool::Pool;
use super::rows::{products_of_four, sum_of_rows};
use super::simd::{Kernel, LANES, Simd};

/// Tokens per task.
const TOKENS: usize = 8;

/// One pass over the tokens. All (B, D) arrays are row-major.
pub(super) struct DecodePass<'a> {
    pub(super) isa: Isa,
    pub(super) params: &'a Params,
    pub(super) rows: &'a Rows,
    pub(super) n_tokens: usize,
    /// What a reconstruction begins with: `b_dec`, or what another reconstruction left over.
    pub(super) begin: Begin<'a>,
    /// What it should be.
    pub(super) target: &'a [f32],
    /// How much the squared error of each token counts; `None` for once each.
    pub(super) weight: Option<&'a [f32]>,
    /// `g = g_scale * weight * error`
    pub(super) g_scale: f32,
    /// Weight of one token's L1 norm, 0 for none, and the norm's p.
    pub(super) l1_scale: f32,
    pub(super) lp_norm: f64,
}

/// See [`DecodePass::begin`].
#[derive(Clone, Copy)]
pub(super) enum Begin<'a> {
    Bias,
    From(&'a [f32]),
}

/// Where a pass writes.
pub(super) struct DecodeOut<'a> {
    pub(super) reconstruction: &'a mut [f32],
    pub(super) g: &'a mut [f32],
    /// Per entry, in the order of the lists.
    pub(super) d_pre: &'a mut [f32],
    /// The same for the slope of the p-norm; used only when p is not 1.
    pub(super) slope: &'a mut [f32],
    /// Per token: squared error, p-norm of the activations weighted by decoder norms.
    pub(super) losses: &'a mut [[f64; 2]],
}

impl DecodePass<'_> {
    pub(super) fn run(&self, pool: &Pool, spares: &Spares<Vec<f32>>, out: DecodeOut<'_>) {
        let out = SharedOut {
            reconstruction: Disjoint::new(out.reconstruction),
            g: Disjoint::new(out.g),
            d_pre: Disjoint::new(out.d_pre),
            slope: Disjoint::new(out.slope),
            losses: Disjoint::new(out.losses),
        };
        pool.run(self.n_tokens.div_ceil(TOKENS), &|index| {
            let tokens = index * TOKENS..((index + 1) * TOKENS).min(self.n_tokens);
            spares.with(|space| self.isa.run(DecodeTokens { pass: self, out: &out, tokens, space }));
        });
    }
}

struct SharedOut<'a> {
    reconstruction: Disjoint<'a, f32>,
    g: Disjoint<'a, f32>,
    d_pre: Disjoint<'a, f32>,
    slope: Disjoint<'a, f32>,
    losses: Disjoint<'a, [f64; 2]>,
}

struct DecodeTokens<'a> {
    pass: &'a DecodePass<'a>,
    out: &'a SharedOut<'a>,
    tokens: std::ops::Range<usize>,
    space: &'a mut Vec<f32>,
}

impl Kernel for DecodeTokens<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        for token in self.tokens {
            one_token::<S>(self.pass, self.out, token, self.space);
        }
    }
}

#[inline(always)]
fn one_token<S: Simd>(pass: &DecodePass<'_>, out: &SharedOut<'_>, token: usize, space: &mut Vec<f32>) {
    let DecodePass { params, rows, .. } = *pass;
    let d_in = params.d_in();
    let range = rows.token(token);
    let (latents, values) = (&rows.latent[range.clone()], &rows.value[range.clone()]);
    let slots = &rows.slot[range];
    let target = &pass.target[token * d_in..][..d_in];
    // SAFETY: each token belongs to one task, and its rows to that token.
    let (row, g) = unsafe { (out.reconstruction.part(token * d_in, d_in), out.g.part(token * d_in, d_in)) };

    match pass.begin {
        Begin::Bias => row.copy_from_slice(&params.b_dec),
        Begin::From(rest) => row.copy_from_slice(&rest[token * d_in..][..d_in]),
    }
    debug_assert!(latents.iter().all(|&latent| (latent as usize) < params.d_sae()));
    // SAFETY: this runs with the instructions of `S`; latents are below F.
    unsafe { sum_of_rows::<S>(row.as_mut_ptr(), true, params.w_dec.as_ptr(), d_in, latents, values) };
    let weight = pass.weight.map_or(1.0, |weight| weight[token]);
    let squared = f64::from(weight) * error::<S>(row, target, pass.g_scale * weight, g);

    // Gradients of the activations: g . W_dec,f, and the decoder norms on the way.
    let n = latents.len();
    space.clear();
    space.resize(2 * n.next_multiple_of(4), 0.0);
    let (dots, norms) = space.split_at_mut(n.next_multiple_of(4));
    let row_of = |latent: u32| params.w_dec[latent as usize * d_in..][..d_in].as_ptr();
    for first in (0..n).step_by(4) {
        let at = |i: usize| row_of(latents[(first + i).min(n - 1)]);
        // SAFETY: this runs with the instructions of `S`; all five are rows of D values.
        let (dot, square) = unsafe { products_of_four::<S>(g.as_ptr(), [at(0), at(1), at(2), at(3)], d_in) };
        dots[first..first + 4].copy_from_slice(&dot);
        for (norm, square) in norms[first..first + 4].iter_mut().zip(square) {
            *norm = square.sqrt();
        }
    }

    let mut total = 0.0;
    let l1 = pass.l1_scale;
    if pass.lp_norm == 1.0 {
        for i in 0..n {
            total += f64::from(values[i]) * f64::from(norms[i]);
            // SAFETY: each slot belongs to one entry.
            unsafe { out.d_pre.set(slots[i] as usize, dots[i] + l1 * norms[i]) };
        }
    } else {
        for i in 0..n {
            let y = f64::from(values[i]) * f64::from(norms[i]);
            total += if y == 0.0 { 0.0 } else { y.powf(pass.lp_norm) };
        }
        total = total.powf(1.0 / pass.lp_norm);
        for i in 0..n {
            let y = f64::from(values[i]) * f64::from(norms[i]);
            let slope = if y == 0.0 { 0.0 } else { (y / total).powf(pass.lp_norm - 1.0) as f32 };
            // SAFETY: each slot belongs to one entry.
            unsafe {
                out.slope.set(slots[i] as usize, slope);
                out.d_pre.set(slots[i] as usize, dots[i] + l1 * norms[i] * slope);
            }
        }
    }
    // SAFETY: one element per token.
    unsafe { out.losses.set(token, [squared, total]) };
}

/// `g = scale * (row - target)`; returns the squared error, summed in double precision.
#[inline(always)]
pub(super) fn error<S: Simd>(row: &[f32], target: &[f32], scale: f32, g: &mut [f32]) -> f64 {
    let d_in = row.len();
    let mut lanes = [0.0_f64; LANES];
    let whole = d_in / LANES * LANES;
    for at in (0..whole).step_by(LANES) {
        let (row, target, g) = (&row[at..at + LANES], &target[at..at + LANES], &mut g[at..at + LANES]);
        for lane in 0..LANES {
            let error = row[lane] - target[lane];
            g[lane] = scale * error;
            lanes[lane] += f64::from(error) * f64::from(error);
        }
    }
    for at in whole..d_in {
        let error = row[at] - target[at];
        g[at] = scale * error;
        lanes[at - whole] += f64::from(error) * f64::from(error);
    }
    lanes.iter().sum()
}
