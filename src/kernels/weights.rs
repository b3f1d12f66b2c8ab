//! Gradients of the weights, latent by latent: each row is a weighted sum of the batch's rows on which the
//! latent was active. Rows of latents that were not active are zero, and are not written again when they are
//! zero already.

use super::isa::Isa;
use super::lists::{Lists, TILE};
use super::memory::{Buffer, Disjoint};
use super::params::Params;
use super::pool::Pool;
use super::rows::{add_scaled, square_of_row, sum_of_rows};
use super::simd::{Kernel, Simd};

/// Marks, in a gradient's `b_enc`, a latent whose rows are all zero; see [`Params`].
pub(super) const NO_GRADIENT: f32 = -0.0;

/// True for [`NO_GRADIENT`] and for no other value.
#[inline(always)]
pub(super) fn has_no_gradient(value: f32) -> bool {
    value.to_bits() == NO_GRADIENT.to_bits()
}

/// One set of entries and the gradient that pulls them.
#[derive(Clone, Copy)]
pub(super) struct Pull<'a> {
    pub(super) lists: &'a Lists,
    /// Gradient by the reconstruction that these entries make, (B, D).
    pub(super) g: &'a [f32],
}

/// One pass over the latents.
pub(super) struct WeightPass<'a> {
    pub(super) isa: Isa,
    pub(super) params: &'a Params,
    pub(super) order: &'a [u32],
    /// What the encoder read, (B, D).
    pub(super) x_in: &'a [f32],
    pub(super) pulls: &'a [Pull<'a>],
    /// Weight of one token's L1 norm, and per entry of the first pull the slope of the norm (empty: 1).
    pub(super) l1_scale: f32,
    pub(super) slope: &'a [f32],
    /// Whether `b_dec` stands in the encoder's input.
    pub(super) bias_in_input: bool,
}

impl WeightPass<'_> {
    /// Writes all gradients but `b_dec`, and per tile the sum of their squares and its share in `b_dec`.
    pub(super) fn run(&self, pool: &Pool, grads: &mut Params, squares: &mut Vec<f64>, bias: &mut Buffer) {
        let d_in = self.params.d_in();
        let n_tiles = self.order.len().div_ceil(TILE);
        squares.clear();
        squares.resize(n_tiles, 0.0);
        bias.resize(if self.bias_in_input { n_tiles * d_in } else { 0 });
        let (squares, bias) = (Disjoint::new(squares), Disjoint::new(bias));
        let out = Out {
            w_enc: Disjoint::new(&mut grads.w_enc),
            w_dec: Disjoint::new(&mut grads.w_dec),
            b_enc: Disjoint::new(&mut grads.b_enc),
        };
        pool.run(n_tiles, &|index| {
            // SAFETY: one tile per task.
            let (square, bias) = unsafe {
                let bias = if self.bias_in_input { bias.part(index * d_in, d_in) } else { bias.part(0, 0) };
                (squares.at(index), bias)
            };
            self.isa.run(WeightTile { pass: self, out: &out, index, square, bias });
        });
    }
}

struct Out<'a> {
    w_enc: Disjoint<'a, f32>,
    w_dec: Disjoint<'a, f32>,
    b_enc: Disjoint<'a, f32>,
}

struct WeightTile<'a> {
    pass: &'a WeightPass<'a>,
    out: &'a Out<'a>,
    index: usize,
    square: &'a mut f64,
    bias: &'a mut [f32],
}

impl Kernel for WeightTile<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let WeightPass { params, order, pulls, .. } = *self.pass;
        let d_in = params.d_in();
        let latents = &order[self.index * TILE..((self.index + 1) * TILE).min(order.len())];
        let mut totals = [0.0_f32; TILE];
        let mut square = 0.0;
        for (place, &latent) in latents.iter().enumerate() {
            let latent = latent as usize;
            // SAFETY: each latent stands once in the order, and each tile belongs to one task.
            let (w_enc, w_dec, b_enc) = unsafe {
                (
                    self.out.w_enc.part(latent * d_in, d_in),
                    self.out.w_dec.part(latent * d_in, d_in),
                    self.out.b_enc.at(latent),
                )
            };
            if pulls.iter().all(|pull| pull.lists.tiles[self.index].latent(place).is_empty()) {
                if !has_no_gradient(*b_enc) {
                    w_enc.fill(0.0);
                    w_dec.fill(0.0);
                    *b_enc = NO_GRADIENT;
                }
                continue;
            }
            let total = one_latent::<S>(self.pass, self.index, place, latent, w_enc, w_dec);
            // Adding 0 turns a -0 that is no mark into 0.
            *b_enc = total as f32 + 0.0;
            totals[place] = *b_enc;
            // SAFETY: this runs with the instructions of `S`; both are rows of D values.
            unsafe {
                square += f64::from(square_of_row::<S>(w_enc.as_ptr(), d_in));
                square += f64::from(square_of_row::<S>(w_dec.as_ptr(), d_in));
            }
            square += f64::from(*b_enc) * f64::from(*b_enc);
        }
        *self.square = square;
        if self.pass.bias_in_input {
            let totals = &totals[..latents.len()];
            // SAFETY: this runs with the instructions of `S`; latents are below F, `bias` has D values.
            unsafe {
                let out = self.bias.as_mut_ptr();
                sum_of_rows::<S>(out, false, params.w_enc.as_ptr(), d_in, latents, totals);
            }
        }
    }
}

/// Writes the two rows of a latent and returns the sum over its entries of their gradients.
#[inline(always)]
fn one_latent<S: Simd>(
    pass: &WeightPass<'_>,
    tile: usize,
    place: usize,
    latent: usize,
    w_enc: &mut [f32],
    w_dec: &mut [f32],
) -> f64 {
    let d_in = pass.params.d_in();
    let mut total = 0.0;
    let mut keep = false;
    for (nth, pull) in pass.pulls.iter().enumerate() {
        let entries = &pull.lists.tiles[tile];
        let range = entries.latent(place);
        if range.is_empty() {
            continue;
        }
        let base = pull.lists.base[tile] as usize;
        let tokens = &entries.token[range.clone()];
        let values = &entries.value[range.clone()];
        let d_pre = &pull.lists.d_pre[base + range.start..base + range.end];
        total += d_pre.iter().map(|&d| f64::from(d)).sum::<f64>();
        // SAFETY: this runs with the instructions of `S`; tokens are below B, and `g` and `x_in` are (B, D).
        unsafe {
            sum_of_rows::<S>(w_dec.as_mut_ptr(), keep, pull.g.as_ptr(), d_in, tokens, values);
            sum_of_rows::<S>(w_enc.as_mut_ptr(), keep, pass.x_in.as_ptr(), d_in, tokens, d_pre);
        }
        keep = true;
        if nth == 0 && pass.l1_scale != 0.0 {
            // The decoder norm is in the graph: d|W|/dW = W / |W|.
            let active: f64 = if pass.slope.is_empty() {
                values.iter().map(|&value| f64::from(value)).sum()
            } else {
                let slope = &pass.slope[base + range.start..base + range.end];
                values.iter().zip(slope).map(|(&value, &slope)| f64::from(value) * f64::from(slope)).sum()
            };
            let row = pass.params.w_dec[latent * d_in..][..d_in].as_ptr();
            // SAFETY: this runs with the instructions of `S`; both are rows of D values.
            unsafe {
                let norm = square_of_row::<S>(row, d_in).sqrt();
                if norm > 0.0 {
                    let factor = f64::from(pass.l1_scale) * active / f64::from(norm);
                    add_scaled::<S>(w_dec.as_mut_ptr(), factor as f32, row, d_in);
                }
            }
        }
    }
    total
}

/// Gradient of `b_dec`: the column sums of `g`, less what comes through the encoder's input. Returns the sum
/// of its squares.
pub(super) fn decoder_bias_gradient(pool: &Pool, g: &[f32], tile_bias: &[f32], out: &mut [f32]) -> f64 {
    const COLUMNS: usize = 64;
    let d_in = out.len();
    let shared = Disjoint::new(out);
    pool.run(d_in.div_ceil(COLUMNS), &|index| {
        let first = index * COLUMNS;
        let width = COLUMNS.min(d_in - first);
        let mut sums = [0.0_f64; COLUMNS];
        for row in g.chunks_exact(d_in) {
            for (sum, &value) in sums.iter_mut().zip(&row[first..first + width]) {
                *sum += f64::from(value);
            }
        }
        for row in tile_bias.chunks_exact(d_in) {
            for (sum, &value) in sums.iter_mut().zip(&row[first..first + width]) {
                *sum -= f64::from(value);
            }
        }
        // SAFETY: one part per task.
        let to = unsafe { shared.part(first, width) };
        for (to, sum) in to.iter_mut().zip(sums) {
            *to = sum as f32;
        }
    });
    out.iter().map(|&value| f64::from(value) * f64::from(value)).sum()
}
