//! Gradients of the weights, latent by latent, and on the way those of the activations.
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

use super::dense::{DenseBatch, DenseGroup, GroupSpace, pack_columns};
use super::isa::Isa;
use super::jumps::Jumps;
use super::lists::{Lists, TILE};
use super::memory::{Buffer, Disjoint, Spares};
use super::params::Params;
use super::parts::Part;
use super::phase;
use super::pool::Pool;
use super::product::GROUP;
use super::rows::{add_scaled, products_with_rows, square_of_row, sum_of_rows};
use super::simd::{Kernel, Simd};

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

/// What a tile task needs; borrowed from [`Spares`].
#[derive(Default)]
struct TileSpace {
    /// Gradient of each entry's pre-activation.
    d_pre: Vec<f32>,
    group: GroupSpace,
}

impl WeightPass<'_> {
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

fn is_dense(n_entries: usize, n_tokens: usize) -> bool {
    n_entries as f64 > DENSE_SHARE * (GROUP * n_tokens) as f64
}

struct Out<'a> {
    w_enc: Disjoint<'a, f32>,
    w_dec: Disjoint<'a, f32>,
    b_enc: Disjoint<'a, f32>,
    /// Empty where the SAE has none.
    threshold: Disjoint<'a, f32>,
    r_mag: Disjoint<'a, f32>,
    b_mag: Disjoint<'a, f32>,
}

struct WeightTile<'a> {
    pass: &'a WeightPass<'a>,
    dense: &'a [DenseBatch],
    x_columns: &'a [f32],
    out: &'a Out<'a>,
    index: usize,
    sums: &'a mut Sums,
    bias: &'a mut [f32],
    /// Of each group, from the part before and for the next; nothing where a batch is whole.
    carried: &'a mut [GroupSums],
    space: &'a mut TileSpace,
}

/// Groups of a tile.
const GROUPS: usize = TILE / GROUP;

/// A group of latents while its gradients are made.
struct Group {
    w_enc: [*mut f32; GROUP],
    w_dec: [*mut f32; GROUP],
    sums: GroupSums,
}

/// What adds up for a group of latents, beside rows.
#[derive(Clone, Copy, Default)]
struct GroupSums {
    /// Whether the rows hold something of this step.
    written: [bool; GROUP],
    /// Sums of the gradients of the pre-activations.
    totals: [f64; GROUP],
    /// The part of them that comes from magnitudes, which have a bias of their own.
    of_magnitudes: [f64; GROUP],
    thresholds: [f64; GROUP],
    r_mag: [f64; GROUP],
    b_mag: [f64; GROUP],
}

impl Kernel for WeightTile<'_> {
    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let (pass, params) = (self.pass, self.pass.params);
        let d_in = params.d_in();
        let latents = &pass.order[self.index * TILE..((self.index + 1) * TILE).min(pass.order.len())];
        let mut totals = [0.0_f32; TILE];
        let mut with_gradient = [0_u32; TILE];
        let mut n_with_gradient = 0;
        for (nth, members) in latents.chunks(GROUP).enumerate() {
            let mut group = Group {
                w_enc: [std::ptr::null_mut(); GROUP],
                w_dec: [std::ptr::null_mut(); GROUP],
                sums: if pass.part.is_first { GroupSums::default() } else { self.carried[nth] },
            };
            for (j, &latent) in members.iter().enumerate() {
                // SAFETY: each latent stands once in the order, and each tile belongs to one task; the
                // gradients have the lengths of the parameters.
                unsafe {
                    group.w_enc[j] = self.out.w_enc.pointer(latent as usize * d_in);
                    group.w_dec[j] = self.out.w_dec.pointer(latent as usize * d_in);
                }
            }
            for nth_pull in 0..pass.pulls.len() {
                self.pull::<S>(nth_pull, nth * GROUP, members, &mut group);
            }
            if !pass.part.is_last {
                self.carried[nth] = group.sums;
                continue;
            }
            for (j, &latent) in members.iter().enumerate() {
                let own = [
                    (&params.threshold, &self.out.threshold, group.sums.thresholds[j]),
                    (&params.r_mag, &self.out.r_mag, group.sums.r_mag[j]),
                    (&params.b_mag, &self.out.b_mag, group.sums.b_mag[j]),
                ];
                for (_, out, gradient) in own.into_iter().filter(|(array, ..)| !array.is_empty()) {
                    let gradient = gradient as f32;
                    self.sums.squares += f64::from(gradient) * f64::from(gradient);
                    // SAFETY: as above.
                    unsafe { *out.at(latent as usize) = gradient };
                }
                // SAFETY: as above.
                let b_enc = unsafe { self.out.b_enc.at(latent as usize) };
                if group.sums.written[j] {
                    // Adding 0 turns a -0 that is no mark into 0.
                    *b_enc = (group.sums.totals[j] - group.sums.of_magnitudes[j]) as f32 + 0.0;
                    totals[n_with_gradient] = group.sums.totals[j] as f32 + 0.0;
                    with_gradient[n_with_gradient] = latent;
                    n_with_gradient += 1;
                    // SAFETY: this runs with the instructions of `S`; both are rows of D values.
                    unsafe {
                        self.sums.squares += f64::from(square_of_row::<S>(group.w_enc[j], d_in));
                        self.sums.squares += f64::from(square_of_row::<S>(group.w_dec[j], d_in));
                    }
                    self.sums.squares += f64::from(*b_enc) * f64::from(*b_enc);
                } else if !has_no_gradient(*b_enc) {
                    // SAFETY: the row has D values and belongs to this task.
                    unsafe {
                        std::slice::from_raw_parts_mut(group.w_enc[j], d_in).fill(0.0);
                        std::slice::from_raw_parts_mut(group.w_dec[j], d_in).fill(0.0);
                    }
                    *b_enc = NO_GRADIENT;
                }
            }
        }
        if pass.bias_in_input && pass.part.is_last {
            let (latents, totals) = (&with_gradient[..n_with_gradient], &totals[..n_with_gradient]);
            // SAFETY: this runs with the instructions of `S`; latents are below F, `bias` has D values.
            unsafe {
                let out = self.bias.as_mut_ptr();
                sum_of_rows::<S>(out, false, params.w_enc.as_ptr(), d_in, latents, totals);
            }
        }
    }
}

impl WeightTile<'_> {
    /// Adds one pull's share to the rows of a group.
    #[inline(always)]
    fn pull<S: Simd>(&mut self, nth: usize, first: usize, members: &[u32], group: &mut Group) {
        let (pass, pull) = (self.pass, &self.pass.pulls[nth]);
        let d_in = pass.params.d_in();
        let entries = &pull.lists.tiles[self.index];
        let n_entries = entries.count(first..first + GROUP);
        if n_entries == 0 {
            return;
        }
        let n_tokens = pull.g.len() / d_in;
        let dense = is_dense(n_entries, n_tokens);
        let TileSpace { d_pre, group: space } = &mut *self.space;
        if d_pre.len() < entries.token.len() {
            d_pre.resize(entries.token.len(), 0.0);
        }
        let row_of = |latent: u32| &pass.params.w_dec[latent as usize * d_in..][..d_in];
        let mut dense_group = DenseGroup { entries, first, n_tokens, d_in, space };

        // Gradients of the activations: g . W_dec,f
        if dense {
            let mut rows = [&[][..]; GROUP];
            for (row, &latent) in rows.iter_mut().zip(members) {
                *row = row_of(latent);
            }
            dense_group.products::<S>(&rows[..members.len()], &self.dense[nth], d_pre);
        } else {
            for (j, &latent) in members.iter().enumerate() {
                let range = entries.latent(first + j);
                // SAFETY: this runs with the instructions of `S`; tokens are below B, and `g` is (B, D).
                unsafe {
                    let (row, g) = (row_of(latent).as_ptr(), pull.g.as_ptr());
                    let tokens = &entries.token[range.clone()];
                    products_with_rows::<S>(row, g, d_in, tokens, &mut d_pre[range]);
                }
            }
        }

        // With y = f * n: d|y|_p / dy_i = (y_i / |y|_p)^(p - 1), and n is in the graph.
        let mut decoder_share = [0.0_f32; GROUP];
        if let Some(loss) = pull.loss {
            for (j, &latent) in members.iter().enumerate() {
                let range = entries.latent(first + j);
                if range.is_empty() {
                    continue;
                }
                // SAFETY: this runs with the instructions of `S`; the row has D values.
                let norm = unsafe { square_of_row::<S>(row_of(latent).as_ptr(), d_in) }.sqrt();
                let values = &entries.value[range.clone()];
                let d_pre = &mut d_pre[range.clone()];
                let l1 = match loss {
                    EntryLoss::L1(l1) => l1,
                    EntryLoss::Jumps(jumps) => {
                        let tokens = &entries.token[range];
                        let slopes = jumps.latent(latent as usize, norm, tokens, values, d_pre);
                        group.sums.thresholds[j] += slopes.threshold;
                        self.sums.sparsity += slopes.sparsity;
                        self.sums.pre_act += slopes.pre_act;
                        if norm > 0.0 {
                            decoder_share[j] = (slopes.norm / f64::from(norm)) as f32;
                        }
                        continue;
                    }
                    EntryLoss::Magnitudes => {
                        let (scale, bias) =
                            (pass.params.r_mag[latent as usize].exp(), pass.params.b_mag[latent as usize]);
                        for (d, &magnitude) in d_pre.iter_mut().zip(values) {
                            // magnitude = scale h + bias, where h is what the encoder gives without a bias.
                            group.sums.b_mag[j] += f64::from(*d);
                            group.sums.r_mag[j] += f64::from(*d * (magnitude - bias));
                            *d *= scale;
                            group.sums.of_magnitudes[j] += f64::from(*d);
                        }
                        continue;
                    }
                };
                let active = if l1.p == 1.0 {
                    d_pre.iter_mut().for_each(|d| *d += l1.scale * norm);
                    let active: f64 = values.iter().map(|&value| f64::from(value)).sum();
                    self.sums.sparsity += active * f64::from(norm);
                    active
                } else {
                    let tokens = &entries.token[range];
                    let mut active = 0.0;
                    for ((d, &value), &token) in d_pre.iter_mut().zip(values).zip(tokens) {
                        let y = f64::from(value) * f64::from(norm);
                        let relative = y / l1.norms[token as usize][1];
                        let slope = if y == 0.0 { 0.0 } else { relative.powf(l1.p - 1.0) };
                        *d += l1.scale * norm * slope as f32;
                        active += f64::from(value) * slope;
                    }
                    active
                };
                if norm > 0.0 {
                    decoder_share[j] = (f64::from(l1.scale) * active / f64::from(norm)) as f32;
                }
            }
        }

        if !pull.decoded {
            let pulls_encoder = matches!(pull.loss, Some(EntryLoss::Jumps(jumps)) if jumps.pulls_encoder());
            if !pulls_encoder {
                return;
            }
            for j in (0..members.len()).filter(|&j| !entries.latent(first + j).is_empty()) {
                if !group.sums.written[j] {
                    // SAFETY: the row has D values and belongs to this task.
                    unsafe { std::slice::from_raw_parts_mut(group.w_dec[j], d_in) }.fill(0.0);
                }
            }
        }
        if dense {
            // SAFETY: the rows of this group belong to this task.
            unsafe {
                let columns = self.dense[nth].columns();
                if pull.decoded {
                    dense_group.sums::<S>(&entries.value, columns, &group.w_dec, &group.sums.written);
                }
                dense_group.sums::<S>(d_pre, self.x_columns, &group.w_enc, &group.sums.written);
            }
        }
        for (j, &latent) in members.iter().enumerate() {
            let range = entries.latent(first + j);
            if range.is_empty() {
                continue;
            }
            let (tokens, values) = (&entries.token[range.clone()], &entries.value[range.clone()]);
            let d_pre = &d_pre[range];
            // SAFETY: this runs with the instructions of `S`; tokens are below B, `g` and `x_in` are (B, D),
            // and the rows have D values and belong to this task.
            unsafe {
                if !dense {
                    let keep = group.sums.written[j];
                    let (g, x_in) = (pull.g.as_ptr(), pass.x_in.as_ptr());
                    if pull.decoded {
                        sum_of_rows::<S>(group.w_dec[j], keep, g, d_in, tokens, values);
                    }
                    sum_of_rows::<S>(group.w_enc[j], keep, x_in, d_in, tokens, d_pre);
                }
                if decoder_share[j] != 0.0 {
                    add_scaled::<S>(group.w_dec[j], decoder_share[j], row_of(latent).as_ptr(), d_in);
                }
            }
            group.sums.written[j] = true;
            group.sums.totals[j] += d_pre.iter().map(|&d| f64::from(d)).sum::<f64>();
        }
    }
}
