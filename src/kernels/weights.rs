//! Gradients of the weights, latent by latent, and on the way those of the activations. A task does one tile of latents
//! ([`super::weight_tile`]).
//!
//! Two ways, chosen per group of 12 latents by its density, which is the same for any number of threads.
//! Sparse: `g` is read for the tokens on which the latent was active, once for the products with its decoder
//! row and once more, from the nearest caches, for the weighted sum that is the decoder row's gradient; then
//! `x` for the encoder row's. Dense: the same three as products of whole panels.
//!
//! Rows of latents that were not active are zero, and are not written again when they are zero already.
//! Squares are summed while the rows are near, so that the global norm costs no pass of its own.
//!
//! Rejected: the products with `g` token by token after decoding, when the token's decoder rows lie in the
//! second-level cache. That reads every active row twice and `g` besides; here `g` is read anyway. Not writing
//! gradients at all but making them again in Adam from `g` and `x` would move as many bytes from the third
//! cache as it saves in memory.

use super::dense::{DenseBatch, pack_columns};
use super::isa::Isa;
use super::jumps::Jumps;
use super::lists::{Lists, TILE};
use super::memory::{Buffer, Disjoint, Spares};
use super::params::Params;
use super::parts::Part;
use super::phase;
use super::pool::Pool;
use super::product::GROUP;
use super::weight_tile::{GROUPS, GroupSums, TileSpace, WeightTile};

/// Marks, in a gradient's `b_enc`, a latent whose rows are all zero; see [`Params`].
pub(super) const NO_GRADIENT: f32 = -0.0;

/// Share of activations from which on a group goes the dense way: where the two ways cost the same on Zen 4.
const DENSE_SHARE: f64 = 0.3;

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
    /// Whether they do make it. Entries that are not active are pulled all the same, where the loss says so.
    pub(super) decoded: bool,
    /// The losses on these entries, if there are any.
    pub(super) loss: Option<EntryLoss<'a>>,
}

/// Losses of activations, beside that of the reconstruction.
#[derive(Clone, Copy)]
pub(super) enum EntryLoss<'a> {
    L1(L1<'a>),
    Jumps(Jumps<'a>),
    /// None of their own; but the entries are magnitudes of a gated SAE.
    Magnitudes,
}

/// The loss `scale * sum_b |f_b * n|_p` with `n_i = |W_dec,i|`.
#[derive(Clone, Copy)]
pub(super) struct L1<'a> {
    pub(super) scale: f32,
    pub(super) p: f64,
    /// Where p is not 1: the p-norm of every token, in the second place.
    pub(super) norms: &'a [[f64; 2]],
}

/// One pass over the latents.
pub(super) struct WeightPass<'a> {
    pub(super) isa: Isa,
    pub(super) params: &'a Params,
    pub(super) order: &'a [u32],
    /// What the encoder read, (B, D).
    pub(super) x_in: &'a [f32],
    pub(super) pulls: &'a [Pull<'a>],
    /// Whether `b_dec` stands in the encoder's input.
    pub(super) bias_in_input: bool,
    /// The first so many pulls are on the decoder bias, too.
    pub(super) pulls_on_bias: usize,
    /// Where the tokens stand in their batch: gradients add up from its first part to its last.
    pub(super) part: Part,
}

/// Memory of the pass, kept between steps.
#[derive(Default)]
pub(super) struct WeightSpace {
    tiles: Vec<Sums>,
    /// Share of each tile in the decoder bias' gradient through the encoder, (tiles, D).
    bias: Buffer,
    dense: Vec<DenseBatch>,
    x_columns: Buffer,
    spares: Spares<TileSpace>,
    /// What a part of a batch hands on to the next: by group of latents, and by column of `g`.
    groups: Vec<GroupSums>,
    columns: Vec<f64>,
}

/// Sums over one tile or over all.
#[derive(Clone, Copy, Default)]
pub(super) struct Sums {
    /// Squares of the gradients; 0 before the last part of a batch.
    pub(super) squares: f64,
    /// `sum_b sum_i f_bi n_i`, where there is an L1 loss with p = 1; see [`Jumps`] for its losses.
    pub(super) sparsity: f64,
    pub(super) pre_act: f64,
}

impl WeightPass<'_> {
    /// A latent's decoder row.
    pub(super) fn decoder_row(&self, latent: u32) -> &[f32] {
        let d_in = self.params.d_in();
        &self.params.w_dec[latent as usize * d_in..][..d_in]
    }

    /// Writes all gradients; before the last part of a batch, what there is of those of the matrices.
    pub(super) fn run(&self, pool: &Pool, space: &mut WeightSpace, grads: &mut Params) -> Sums {
        let _phase = phase::gradients();
        let d_in = self.params.d_in();
        let n_tiles = self.order.len().div_ceil(TILE);
        let WeightSpace { tiles, bias, dense, x_columns, spares, groups, columns } = space;
        if self.part.is_first {
            groups.clear();
            columns.clear();
        }
        if !self.part.is_whole() {
            groups.resize(n_tiles * GROUPS, GroupSums::default());
            columns.resize(d_in, 0.0);
        }
        tiles.clear();
        tiles.resize(n_tiles, Sums::default());
        bias.resize(if self.bias_in_input { n_tiles * d_in } else { 0 });
        dense.resize_with(self.pulls.len().max(dense.len()), DenseBatch::default);
        let mut any_dense = false;
        for (batch, pull) in dense.iter_mut().zip(self.pulls) {
            let n_tokens = pull.g.len() / d_in;
            let found = pull.lists.tiles.iter().any(|tile| {
                (0..TILE).step_by(GROUP).any(|first| is_dense(tile.count(first..first + GROUP), n_tokens))
            });
            batch.prepare(pool, found.then_some(pull.g), d_in);
            any_dense |= found;
        }
        if any_dense {
            pack_columns(pool, self.x_in, d_in, x_columns);
        } else {
            *x_columns = Buffer::default();
        }

        {
            let (sums, bias) = (Disjoint::new(tiles), Disjoint::new(bias));
            let groups = Disjoint::new(groups);
            let out = Out {
                w_enc: Disjoint::new(&mut grads.w_enc),
                w_dec: Disjoint::new(&mut grads.w_dec),
                b_enc: Disjoint::new(&mut grads.b_enc),
                threshold: Disjoint::new(&mut grads.threshold),
                r_mag: Disjoint::new(&mut grads.r_mag),
                b_mag: Disjoint::new(&mut grads.b_mag),
            };
            pool.run(n_tiles, &|index| {
                // SAFETY: one tile per task.
                let (sums, bias, carried) = unsafe {
                    let len = if self.bias_in_input { d_in } else { 0 };
                    let n_groups = if self.part.is_whole() { 0 } else { GROUPS };
                    (sums.at(index), bias.part(index * len, len), groups.part(index * n_groups, n_groups))
                };
                let (pass, out, x_columns) = (self, &out, &**x_columns);
                spares.with(|space| {
                    let tile = WeightTile { pass, dense, x_columns, out, index, sums, bias, carried, space };
                    self.isa.run(tile);
                });
            });
        }
        let bias_squares = self.decoder_bias_gradient(pool, bias, columns, &mut grads.b_dec);
        Sums {
            squares: tiles.iter().map(|tile| tile.squares).sum::<f64>() + bias_squares,
            sparsity: tiles.iter().map(|tile| tile.sparsity).sum(),
            pre_act: tiles.iter().map(|tile| tile.pre_act).sum(),
        }
    }
}

/// Whether a group of latents goes the dense way.
pub(super) fn is_dense(n_entries: usize, n_tokens: usize) -> bool {
    n_entries as f64 > DENSE_SHARE * (GROUP * n_tokens) as f64
}

/// Gradients that tiles write, each those of its own latents.
pub(super) struct Out<'a> {
    pub(super) w_enc: Disjoint<'a, f32>,
    pub(super) w_dec: Disjoint<'a, f32>,
    pub(super) b_enc: Disjoint<'a, f32>,
    /// Empty where the SAE has none.
    pub(super) threshold: Disjoint<'a, f32>,
    pub(super) r_mag: Disjoint<'a, f32>,
    pub(super) b_mag: Disjoint<'a, f32>,
}
