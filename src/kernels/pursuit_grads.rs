//! Gradients of decoder rows after a pursuit: `dd_i += v_t h_(t+1) + dv_t r_t` over all choices of all tokens.
//!
//! A task owns some columns and walks all tokens in order, each from its last choice to its first, with those columns
//! of h and r in registers: `h -= dv_t d_i` as the gradient goes back, `r += v_t d_i` as the residual was. So every
//! gradient is added up in one order, whatever the number of threads.
//!
//! Rejected: storing h and r for every choice, which is what the rows' gradients would be products of (B T rows of D
//! values, for T choices a token), and going by latent, which needs them.

use super::isa::Isa;
use super::lists::TILE;
use super::memory::Disjoint;
use super::params::Params;
use super::phase;
use super::pool::Pool;
use super::pursuit::Choices;
use super::rows::square_of_row;
use super::simd::{Kernel, LANES, Simd};
use super::weights::{NO_GRADIENT, has_no_gradient};

/// Vectors of columns in one task.
const VECTORS: usize = 4;

/// One pass over the choices.
pub(super) struct PursuitGradients<'a> {
    pub(super) isa: Isa,
    pub(super) w_dec: &'a [f32],
    pub(super) d_in: usize,
    pub(super) blocks: &'a [Choices],
    /// For each latent, whether it was chosen.
    pub(super) fired: &'a [u32],
    /// What is left of every token, (B, D).
    pub(super) residual: &'a [f32],
    /// Gradient by the reconstruction, (B, D).
    pub(super) g: &'a [f32],
    /// Whether `b_dec` is subtracted and added.
    pub(super) with_bias: bool,
}

impl PursuitGradients<'_> {
    /// Writes all gradients and returns the sum of their squares. `squares` is memory kept between steps.
    pub(super) fn run(&self, pool: &Pool, squares: &mut Vec<f64>, grads: &mut Params) -> f64 {
        let _phase = phase::gradients();
        let (d_in, d_sae) = (self.d_in, self.fired.len());
        let n_tiles = d_sae.div_ceil(TILE);
        let (w_dec, b_enc) = (Disjoint::new(&mut grads.w_dec), Disjoint::new(&mut grads.b_enc));
        pool.run(n_tiles, &|index| {
            for latent in index * TILE..((index + 1) * TILE).min(d_sae) {
                // SAFETY: each latent belongs to one task.
                let (row, mark) = unsafe { (w_dec.part(latent * d_in, d_in), b_enc.at(latent)) };
                let has_gradient = self.fired[latent] > 0;
                // Rows without a gradient are not written again when they are zero already.
                if has_gradient || !has_no_gradient(*mark) {
                    row.fill(0.0);
                }
                *mark = if has_gradient { 0.0 } else { NO_GRADIENT };
            }
        });

        let b_dec = Disjoint::new(&mut grads.b_dec);
        let whole = d_in / (VECTORS * LANES);
        let n_rest = (d_in - whole * VECTORS * LANES).div_ceil(LANES);
        pool.run(whole + n_rest, &|index| {
            let vectors = if index < whole { VECTORS } else { 1 };
            let first = if index < whole {
                index * VECTORS * LANES
            } else {
                (whole * VECTORS + index - whole) * LANES
            };
            let width = (vectors * LANES).min(d_in - first);
            // SAFETY: these columns belong to this task.
            let b_dec = unsafe { b_dec.part(first, width) };
            self.isa.run(Columns { pass: self, w_dec: &w_dec, first, b_dec });
        });

        squares.clear();
        squares.resize(n_tiles, 0.0);
        let out = Disjoint::new(squares);
        pool.run(n_tiles, &|index| {
            // SAFETY: one element per task.
            let out = unsafe { out.at(index) };
            let latents = index * TILE..((index + 1) * TILE).min(d_sae);
            self.isa.run(Squares { pass: self, w_dec: &w_dec, latents, out });
        });
        let of_bias: f64 = grads.b_dec.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
        squares.iter().sum::<f64>() + of_bias
    }
}

/// The columns from `first` on, as many as `b_dec` has.
struct Columns<'a> {
    pass: &'a PursuitGradients<'a>,
    w_dec: &'a Disjoint<'a, f32>,
    first: usize,
    b_dec: &'a mut [f32],
}

impl Kernel for Columns<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        // SAFETY: this runs with the instructions of `S`; there are as many columns as is said.
        unsafe {
            match self.b_dec.len() {
                LANES => self.walk::<S, 1, false>(),
                width if width < LANES => self.walk::<S, 1, true>(),
                _ => self.walk::<S, VECTORS, false>(),
            }
        }
    }
}

impl Columns<'_> {
    /// # Safety
    /// Instructions of `S` enabled; there are N vectors of columns, or with `PART` fewer than one.
    #[inline(always)]
    unsafe fn walk<S: Simd, const N: usize, const PART: bool>(self) {
        let Self { pass, w_dec, first, b_dec } = self;
        let width = b_dec.len();
        assert!(PART || width == N * LANES, "whole vectors");
        let mut bias = [[0.0_f64; LANES]; N];
        // SAFETY: columns are those of this task, as many as `width`; latents are below F, tokens below B.
        unsafe {
            let load = |from: *const f32, v: usize| {
                if PART { S::load_part(from, width) } else { S::load(from.add(v * LANES)) }
            };
            for block in pass.blocks {
                for nth in 0..block.n_tokens() {
                    let at = (block.first + nth) * pass.d_in + first;
                    let (mut h, mut r) = ([S::splat(0.0); N], [S::splat(0.0); N]);
                    let (g, rest) = (&pass.g[at..at + width], &pass.residual[at..at + width]);
                    for v in 0..N {
                        (h[v], r[v]) = (load(g.as_ptr(), v), load(rest.as_ptr(), v));
                    }
                    for choice in block.token(nth).rev() {
                        let at = block.latent[choice] as usize * pass.d_in + first;
                        let direction = pass.w_dec[at..at + width].as_ptr();
                        let to = w_dec.part(at, width).as_mut_ptr();
                        let (value, pull) = (S::splat(block.value[choice]), S::splat(block.pull[choice]));
                        let back = S::splat(-block.pull[choice]);
                        for v in 0..N {
                            let d = load(direction, v);
                            r[v] = S::fma(value, d, r[v]);
                            let sum = S::fma(pull, r[v], S::fma(value, h[v], load(to, v)));
                            if PART {
                                S::store_part(to, sum, width);
                            } else {
                                S::store(to.add(v * LANES), sum);
                            }
                            h[v] = S::fma(back, d, h[v]);
                        }
                    }
                    if pass.with_bias {
                        for v in 0..N {
                            let mut lanes = [0.0; LANES];
                            S::store(lanes.as_mut_ptr(), h[v]);
                            for (sum, lane) in bias[v].iter_mut().zip(lanes) {
                                *sum += f64::from(lane);
                            }
                        }
                    }
                }
            }
        }
        for (to, sum) in b_dec.iter_mut().zip(bias.as_flattened()) {
            *to = *sum as f32;
        }
    }
}

/// Squares of the rows of some latents.
struct Squares<'a> {
    pass: &'a PursuitGradients<'a>,
    w_dec: &'a Disjoint<'a, f32>,
    latents: std::ops::Range<usize>,
    out: &'a mut f64,
}

impl Kernel for Squares<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let d_in = self.pass.d_in;
        for latent in self.latents.filter(|&latent| self.pass.fired[latent] > 0) {
            // SAFETY: this runs with the instructions of `S`; nobody writes gradients any more.
            unsafe {
                let row = self.w_dec.part(latent * d_in, d_in);
                *self.out += f64::from(square_of_row::<S>(row.as_ptr(), d_in));
            }
        }
    }
}
