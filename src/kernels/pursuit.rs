//! Choosing latents one after the other, for a batch of tokens; see [`super::reference::pursue`].
//!
//! Each choice needs the product of what is left with every decoder row. Two ways to have them, which choose the
//! same to the bit:
//! - Products: computed anew before every choice, for the tokens of a block that are not done yet.
//! - Gram: brought up to date, `p -= v G_i`, with the row of the products of decoder rows with each other that
//!   belongs to the latent just chosen. A token then costs one pass over a row of F values for each choice instead
//!   of F D products, but the matrix costs half as much as F D products for each of F tokens, and F^2 values of memory
//!   (1 GiB at 16384 latents, F / 4 D times parameters, gradients and moments). It is taken where that is less work by
//!   the number of choices of the last batch, and fits [`GRAM_BYTES`].
//!
//! Products that were brought up to date are off by rounding. [`super::pursuit_block`] bounds by how much; where more
//! than one latent may be the largest within it, theirs are computed anew, and where too many may, all are. So the
//! choice is always that of the products computed anew, of equal ones the lowest latent.
//!
//! Measured, a whole step of 1024 tokens on one Zen 4 core: at 1024 by 16384, 60 choices a token take 3.8 s, of which the
//! matrix takes 2.5; each further choice takes 9 us a token, where products take 320. 4 choices, by products, take 1.7 s.
//! At 576 by 4608 it is 0.35 s and 0.19 s. SAELens takes 27.6 s, 2.8 s, 4.0 s and 0.45 s.
//!
//! Rejected: products only of latents that may come next, with a bound for the others by what the residual has moved:
//! after one choice it has moved about as far as the largest product, and excludes nothing.

use super::gather::pack_batch;
use super::gram::{Gram, RowPanels};
use super::matching_pursuit::{Pursuit, RowSpares};
use super::memory::{Buffer, Disjoint, Spares};
use super::params::Params;
use super::phase;
use super::pool::Pool;
use super::pursuit_block::{BlockSpace, CHUNK, Pursue, PursueBlock, TOKENS};
use super::select::decoder_norms;
use super::workspace::Workspace;

/// The largest matrix of products of decoder rows: that of 16384 latents, and little more.
const GRAM_BYTES: usize = 5 << 28;

/// Memory of a pursuit, kept between steps.
#[derive(Default)]
pub(super) struct PursuitSpace {
    pub(super) blocks: Vec<Choices>,
    /// What is left of every token, (B, D); before the pursuit, the tokens.
    pub(super) residual: Buffer,
    panels: Buffer,
    gram: Gram,
    spares: Spares<BlockSpace>,
    pub(super) rows: RowSpares,
    /// Squares of gradients, by tile of latents.
    pub(super) squares: Vec<f64>,
    /// Choices of the last batch, and its tokens.
    last: Option<(usize, usize)>,
    /// For tests: the way to take.
    pub(super) forced: Option<Way>,
}

/// Where the products come from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Way {
    Products,
    Gram,
}

/// What was chosen for a block of tokens, and what came of it.
#[derive(Default)]
pub(super) struct Choices {
    /// The first token.
    pub(super) first: usize,
    /// Where each token's choices begin, and where the last ones end.
    pub(super) start: Vec<u32>,
    pub(super) latent: Vec<u32>,
    pub(super) value: Vec<f32>,
    /// Gradient of each value, once it is known.
    pub(super) pull: Vec<f32>,
    /// Activations: where each token's begin, the latents in the order of their first choice, sums of values.
    pub(super) act_start: Vec<u32>,
    pub(super) act_latent: Vec<u32>,
    pub(super) act: Vec<f32>,
}

impl Choices {
    /// The choices of the block's nth token.
    #[inline(always)]
    pub(super) fn token(&self, nth: usize) -> std::ops::Range<usize> {
        self.start[nth] as usize..self.start[nth + 1] as usize
    }

    /// The activations of the block's nth token.
    #[inline(always)]
    pub(super) fn acts(&self, nth: usize) -> std::ops::Range<usize> {
        self.act_start[nth] as usize..self.act_start[nth + 1] as usize
    }

    pub(super) fn n_tokens(&self) -> usize {
        self.start.len() - 1
    }

    /// Takes over what was chosen, (token in the block, latent, value) in the order of choice, and adds up the
    /// activations. `sums` (F) is 0 before and after.
    fn take(&mut self, first: usize, n_tokens: usize, taken: &[(u32, u32, f32)], sums: &mut [f32]) {
        self.first = first;
        self.start.clear();
        self.start.resize(n_tokens + 1, 0);
        for &(token, ..) in taken {
            self.start[token as usize + 1] += 1;
        }
        for token in 0..n_tokens {
            self.start[token + 1] += self.start[token];
        }
        let mut next = [0; TOKENS];
        next[..n_tokens].copy_from_slice(&self.start[..n_tokens]);
        self.latent.resize(taken.len(), 0);
        self.value.resize(taken.len(), 0.0);
        self.pull.resize(taken.len(), 0.0);
        for &(token, latent, value) in taken {
            let to = next[token as usize] as usize;
            next[token as usize] += 1;
            (self.latent[to], self.value[to]) = (latent, value);
        }
        self.act_start.clear();
        self.act_start.push(0);
        self.act_latent.clear();
        self.act.clear();
        for nth in 0..n_tokens {
            let from = self.act_latent.len();
            for at in self.token(nth) {
                let sum = &mut sums[self.latent[at] as usize];
                // A value is positive, or NaN.
                if *sum == 0.0 {
                    self.act_latent.push(self.latent[at]);
                }
                *sum += self.value[at];
            }
            for &latent in &self.act_latent[from..] {
                self.act.push(std::mem::take(&mut sums[latent as usize]));
            }
            self.act_start.push(self.act_latent.len() as u32);
        }
    }
}

impl Workspace {
    /// Chooses latents for `n_tokens` tokens that `pursuit.residual` holds, and leaves there what is left of them.
    pub(super) fn pursue(&mut self, pool: &Pool, params: &Params, pursuit: &Pursuit, n_tokens: usize) {
        let _phase = phase::pursue();
        let (d_in, d_sae) = (self.shape.d_in, self.shape.d_sae);
        self.n_tokens = n_tokens;
        decoder_norms(pool, self.isa, params, &mut self.norms);
        let space = &mut self.pursuit;
        pack_batch(pool, &params.w_dec, d_in, None, &mut space.panels);
        let rows = RowPanels { panels: &space.panels, d_in, d_sae };
        let columns = d_sae.next_multiple_of(CHUNK);
        let iterations = pursuit.iterations(d_in);
        let way = space.forced.unwrap_or_else(|| way(d_in, d_sae, columns, n_tokens, iterations, space.last));
        if way == Way::Gram {
            space.gram.fill(pool, self.isa, rows, &params.w_dec, columns);
        }
        let n_blocks = n_tokens.div_ceil(TOKENS);
        space.blocks.resize_with(n_blocks, Choices::default);
        let (blocks, residual) = (Disjoint::new(&mut space.blocks), Disjoint::new(&mut space.residual));
        let task = Pursue {
            w_dec: &params.w_dec,
            rows,
            norms: &self.norms,
            largest_norm: self.norms.iter().fold(0.0, |a, &b| if b > a || b.is_nan() { b } else { a }),
            gram: (way == Way::Gram).then_some(&space.gram),
            columns,
            pursuit,
            iterations,
        };
        let (isa, spares, task) = (self.isa, &space.spares, &task);
        pool.run(n_blocks, &|index| {
            let first = index * TOKENS;
            let count = TOKENS.min(n_tokens - first);
            // SAFETY: one block per task.
            let (out, residual) = unsafe { (blocks.at(index), residual.part(first * d_in, count * d_in)) };
            spares.with(|space| {
                isa.run(PursueBlock { task, residual, space });
                space.sums.resize(d_sae, 0.0);
                out.take(first, count, &space.taken, &mut space.sums);
            });
        });
        space.last = Some((space.blocks.iter().map(|block| block.latent.len()).sum(), n_tokens));
    }
}

/// The way with less work.
fn way(
    d_in: usize,
    d_sae: usize,
    columns: usize,
    n_tokens: usize,
    iterations: usize,
    last: Option<(usize, usize)>,
) -> Way {
    if Gram::bytes(d_sae, columns) > GRAM_BYTES {
        return Way::Products;
    }
    // At first, some tens of choices are likely.
    let (choices, of) = last.unwrap_or((iterations.min(32), 1));
    let choices = choices as f64 / of as f64 * n_tokens as f64;
    // In pairs of operations. A value read from the matrix, mostly from memory, takes as long as 32 of them; and
    // products for what is left of a block take the longer the fewer tokens that is.
    let (d, f) = (d_in as f64, d_sae as f64);
    let by_products = 1.3 * choices * f * d;
    let by_gram = f * f * d / 2.0 + n_tokens as f64 * f * d + 32.0 * choices * f;
    if by_gram < by_products { Way::Gram } else { Way::Products }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_pursuits_take_products_and_long_ones_the_matrix() {
        let way = |last, iterations| way(1024, 16384, 16384, 1024, iterations, last);
        assert_eq!(way(None, 4), Way::Products);
        assert_eq!(way(None, 1024), Way::Gram);
        assert_eq!(way(Some((1024, 1024)), 1024), Way::Products);
        assert_eq!(way(Some((60 * 1024, 1024)), 1024), Way::Gram);
    }
}
