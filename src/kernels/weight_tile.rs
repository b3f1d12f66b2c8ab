//! Gradients of the weights of one tile of latents, and of their activations: what [`super::weights`] has every task do.
//!
//! Where few latents fire, groups of 12 are done one after the other, and with each latent the tokens on which it was
//! active are read from the third-level cache, there being no two that share many. Where more fire, all groups of the
//! tile go through the batch together, some tokens at a time, so that all latents but the first find a token's rows in
//! the second-level cache. Rows are added up in the same order both ways, so gradients have the same bits.
//!
//! On an Emerald Rapids core that takes gradients from 102 to 49 ms at 576 by 4608 with a tenth of all latents active,
//! from 802 to 456 at 1024 by 16384 with 15 %, from 159 to 137 there with 3 % (1024 tokens). Two and four groups at once
//! were slower everywhere; 256 KiB at a time are a little better with many active and gain nothing with 3 %, 1 MiB is
//! the other way round.

use super::dense::{DenseBatch, DenseGroup, GroupSpace};
use super::lists::{TILE, TileLists};
use super::product::GROUP;
use super::rows::{add_scaled, products_with_rows, square_of_row, sum_of_rows};
use super::simd::{Kernel, Simd};
use super::weights::{EntryLoss, NO_GRADIENT, Out, Pull, Sums, WeightPass, has_no_gradient, is_dense};
use std::ops::Range;

/// Groups of a tile.
pub(super) const GROUPS: usize = TILE / GROUP;

/// Share of activations from which on the groups of a tile go together.
const SHARED_SHARE: f64 = 0.02;
/// Bytes of the rows of the tokens that they go through at a time; in tests so few that batches of theirs take several.
const SHARED_BYTES: usize = if cfg!(test) { 2 << 10 } else { 512 << 10 };

/// One tile in one pass.
pub(super) struct WeightTile<'a> {
    pub(super) pass: &'a WeightPass<'a>,
    pub(super) dense: &'a [DenseBatch],
    pub(super) x_columns: &'a [f32],
    pub(super) out: &'a Out<'a>,
    pub(super) index: usize,
    pub(super) sums: &'a mut Sums,
    /// Its share in the decoder bias' gradient through the encoder, (D), where there is one.
    pub(super) bias: &'a mut [f32],
    /// Of each group, from the part before and for the next; nothing where a batch is whole.
    pub(super) carried: &'a mut [GroupSums],
    pub(super) space: &'a mut TileSpace,
}

/// What a tile task needs; kept between steps.
#[derive(Default)]
pub(super) struct TileSpace {
    /// Gradient of each entry's pre-activation.
    d_pre: Vec<f32>,
    group: GroupSpace,
}

/// A group of latents while its gradients are made.
#[derive(Clone, Copy)]
struct Group {
    w_enc: [*mut f32; GROUP],
    w_dec: [*mut f32; GROUP],
    sums: GroupSums,
    /// What a loss adds of each latent's decoder row to its gradient, in one pull.
    decoder_share: [f32; GROUP],
}

/// What adds up for a group of latents, beside rows.
#[derive(Clone, Copy, Default)]
pub(super) struct GroupSums {
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

/// Latents that have a gradient, and the sum of their pre-activations' gradients.
struct Pulled {
    latents: [u32; TILE],
    totals: [f32; TILE],
    len: usize,
}

impl Kernel for WeightTile<'_> {
    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let pass = self.pass;
        let d_in = pass.params.d_in();
        let latents = &pass.order[self.index * TILE..((self.index + 1) * TILE).min(pass.order.len())];
        let mut pulled = Pulled { latents: [0; TILE], totals: [0.0; TILE], len: 0 };
        let mut groups = [Group {
            w_enc: [std::ptr::null_mut(); GROUP],
            w_dec: [std::ptr::null_mut(); GROUP],
            sums: GroupSums::default(),
            decoder_share: [0.0; GROUP],
        }; GROUPS];
        let (at_once, tokens_at_once) = self.sharing();
        for (nth, members) in latents.chunks(at_once * GROUP).enumerate() {
            let first = nth * at_once;
            let groups = &mut groups[..members.len().div_ceil(GROUP)];
            for (nth, (group, members)) in groups.iter_mut().zip(members.chunks(GROUP)).enumerate() {
                group.sums =
                    if pass.part.is_first { GroupSums::default() } else { self.carried[first + nth] };
                for (j, &latent) in members.iter().enumerate() {
                    // SAFETY: each latent stands once in the order, and each tile belongs to one task; the
                    // gradients have the lengths of the parameters.
                    unsafe {
                        group.w_enc[j] = self.out.w_enc.pointer(latent as usize * d_in);
                        group.w_dec[j] = self.out.w_dec.pointer(latent as usize * d_in);
                    }
                }
            }
            for nth_pull in 0..pass.pulls.len() {
                self.pull::<S>(nth_pull, first * GROUP, members, groups, tokens_at_once);
            }
            for (nth, (group, members)) in groups.iter().zip(members.chunks(GROUP)).enumerate() {
                if pass.part.is_last {
                    self.finish::<S>(group, members, &mut pulled);
                } else {
                    self.carried[first + nth] = group.sums;
                }
            }
        }
        if pass.bias_in_input && pass.part.is_last {
            let (latents, totals) = (&pulled.latents[..pulled.len], &pulled.totals[..pulled.len]);
            // SAFETY: this runs with the instructions of `S`; latents are below F, `bias` has D values.
            unsafe {
                let out = self.bias.as_mut_ptr();
                sum_of_rows::<S>(out, false, pass.params.w_enc.as_ptr(), d_in, latents, totals);
            }
        }
    }
}

impl WeightTile<'_> {
    /// How many groups go together, and through how many tokens at a time.
    fn sharing(&self) -> (usize, usize) {
        let d_in = self.pass.params.d_in();
        let is_shared = self.pass.pulls.iter().any(|pull| {
            let (n_entries, n_tokens) = (pull.lists.tiles[self.index].token.len(), pull.g.len() / d_in);
            n_entries as f64 > SHARED_SHARE * (TILE * n_tokens) as f64
        });
        if is_shared { (GROUPS, (SHARED_BYTES / (4 * d_in)).max(1)) } else { (1, usize::MAX) }
    }

    /// Writes what is left to write of a group once all pulls are in, and the squares.
    #[inline(always)]
    fn finish<S: Simd>(&mut self, group: &Group, members: &[u32], pulled: &mut Pulled) {
        let params = self.pass.params;
        let d_in = params.d_in();
        for (j, &latent) in members.iter().enumerate() {
            let own = [
                (&params.threshold, &self.out.threshold, group.sums.thresholds[j]),
                (&params.r_mag, &self.out.r_mag, group.sums.r_mag[j]),
                (&params.b_mag, &self.out.b_mag, group.sums.b_mag[j]),
            ];
            for (_, out, gradient) in own.into_iter().filter(|(array, ..)| !array.is_empty()) {
                let gradient = gradient as f32;
                self.sums.squares += f64::from(gradient) * f64::from(gradient);
                // SAFETY: each latent belongs to one task, and the gradients have the lengths of the parameters.
                unsafe { *out.at(latent as usize) = gradient };
            }
            // SAFETY: as above.
            let b_enc = unsafe { self.out.b_enc.at(latent as usize) };
            if group.sums.written[j] {
                // Adding 0 turns a -0 that is no mark into 0.
                *b_enc = (group.sums.totals[j] - group.sums.of_magnitudes[j]) as f32 + 0.0;
                pulled.totals[pulled.len] = group.sums.totals[j] as f32 + 0.0;
                pulled.latents[pulled.len] = latent;
                pulled.len += 1;
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

    /// Adds one pull's share to the rows of some groups, the first of whose latents stands at `first` of the tile.
    #[inline(always)]
    fn pull<S: Simd>(
        &mut self,
        nth: usize,
        first: usize,
        members: &[u32],
        groups: &mut [Group],
        tokens_at_once: usize,
    ) {
        let (pass, pull) = (self.pass, &self.pass.pulls[nth]);
        let d_in = pass.params.d_in();
        let entries = &pull.lists.tiles[self.index];
        if entries.count(first..first + members.len()) == 0 {
            return;
        }
        let n_tokens = pull.g.len() / d_in;
        if self.space.d_pre.len() < entries.token.len() {
            self.space.d_pre.resize(entries.token.len(), 0.0);
        }
        let mut dense = [false; GROUPS];
        for (nth_group, (dense, members)) in dense.iter_mut().zip(members.chunks(GROUP)).enumerate() {
            let first = first + nth_group * GROUP;
            *dense = is_dense(entries.count(first..first + GROUP), n_tokens);
            if *dense {
                self.dense_products::<S>(nth, first, members, &groups[nth_group]);
            }
        }
        let walk = || Walk::new((entries, first, members), dense, tokens_at_once, n_tokens);

        // Gradients of the activations, g . W_dec,f, and of the decoder.
        let d_pre = &mut self.space.d_pre;
        for LatentEntries { group, place, latent, entries: range, is_begun } in walk() {
            let group = &groups[group];
            let (tokens, values) = (&entries.token[range.clone()], &entries.value[range.clone()]);
            // SAFETY: this runs with the instructions of `S`; tokens are below B, `g` is (B, D), and the rows have D
            // values and belong to this task.
            unsafe {
                let (row, g) = (pass.decoder_row(latent).as_ptr(), pull.g.as_ptr());
                products_with_rows::<S>(row, g, d_in, tokens, &mut d_pre[range]);
                if pull.decoded {
                    let keep = is_begun || group.sums.written[place];
                    sum_of_rows::<S>(group.w_dec[place], keep, g, d_in, tokens, values);
                }
            }
        }
        for (nth_group, (group, members)) in groups.iter_mut().zip(members.chunks(GROUP)).enumerate() {
            self.losses::<S>(pull, first + nth_group * GROUP, members, group);
        }
        if !pull.decoded {
            let pulls_encoder = matches!(pull.loss, Some(EntryLoss::Jumps(jumps)) if jumps.pulls_encoder());
            if !pulls_encoder {
                return;
            }
        }

        // Those of the encoder.
        for (nth_group, group) in groups.iter().enumerate().filter(|&(nth_group, _)| dense[nth_group]) {
            let TileSpace { d_pre, group: space } = &mut *self.space;
            let mut dense_group =
                DenseGroup { entries, first: first + nth_group * GROUP, n_tokens, d_in, space };
            // SAFETY: the rows of this group belong to this task.
            unsafe { dense_group.sums::<S>(d_pre, self.x_columns, &group.w_enc, &group.sums.written) };
        }
        let d_pre = &self.space.d_pre;
        for LatentEntries { group, place, entries: range, is_begun, .. } in walk() {
            let group = &groups[group];
            let keep = is_begun || group.sums.written[place];
            let (tokens, d_pre) = (&entries.token[range.clone()], &d_pre[range]);
            // SAFETY: as above, with `x_in` (B, D).
            unsafe { sum_of_rows::<S>(group.w_enc[place], keep, pass.x_in.as_ptr(), d_in, tokens, d_pre) };
        }
        for (nth_group, (group, members)) in groups.iter_mut().zip(members.chunks(GROUP)).enumerate() {
            for (j, &latent) in members.iter().enumerate() {
                let range = entries.latent(first + nth_group * GROUP + j);
                if range.is_empty() {
                    continue;
                }
                if !pull.decoded && !group.sums.written[j] {
                    // SAFETY: the row has D values and belongs to this task.
                    unsafe { std::slice::from_raw_parts_mut(group.w_dec[j], d_in) }.fill(0.0);
                }
                if group.decoder_share[j] != 0.0 {
                    let row = pass.decoder_row(latent);
                    // SAFETY: this runs with the instructions of `S`, on rows of D values, of which one is this task's.
                    unsafe { add_scaled::<S>(group.w_dec[j], group.decoder_share[j], row.as_ptr(), d_in) };
                }
                group.sums.written[j] = true;
                group.sums.totals[j] += d_pre[range].iter().map(|&d| f64::from(d)).sum::<f64>();
            }
        }
    }

    /// The dense way of a group: gradients of its activations and of its decoder rows.
    #[inline(always)]
    fn dense_products<S: Simd>(&mut self, nth: usize, first: usize, members: &[u32], group: &Group) {
        let (pass, pull) = (self.pass, &self.pass.pulls[nth]);
        let (d_in, entries) = (pass.params.d_in(), &pull.lists.tiles[self.index]);
        let TileSpace { d_pre, group: space } = &mut *self.space;
        let mut dense_group = DenseGroup { entries, first, n_tokens: pull.g.len() / d_in, d_in, space };
        let mut rows = [&[][..]; GROUP];
        for (row, &latent) in rows.iter_mut().zip(members) {
            *row = pass.decoder_row(latent);
        }
        dense_group.products::<S>(&rows[..members.len()], &self.dense[nth], d_pre);
        if pull.decoded {
            let columns = self.dense[nth].columns();
            // SAFETY: the rows of this group belong to this task.
            unsafe { dense_group.sums::<S>(&entries.value, columns, &group.w_dec, &group.sums.written) };
        }
    }

    /// Adds what the losses of a group's activations contribute to the gradients of their pre-activations.
    #[inline(always)]
    fn losses<S: Simd>(&mut self, pull: &Pull<'_>, first: usize, members: &[u32], group: &mut Group) {
        group.decoder_share = [0.0; GROUP];
        let Some(loss) = pull.loss else { return };
        let (pass, entries) = (self.pass, &pull.lists.tiles[self.index]);
        let d_in = pass.params.d_in();
        // With y = f * n: d|y|_p / dy_i = (y_i / |y|_p)^(p - 1), and n is in the graph.
        for (j, &latent) in members.iter().enumerate() {
            let range = entries.latent(first + j);
            if range.is_empty() {
                continue;
            }
            // SAFETY: this runs with the instructions of `S`; the row has D values.
            let norm = unsafe { square_of_row::<S>(pass.decoder_row(latent).as_ptr(), d_in) }.sqrt();
            let values = &entries.value[range.clone()];
            let d_pre = &mut self.space.d_pre[range.clone()];
            let l1 = match loss {
                EntryLoss::L1(l1) => l1,
                EntryLoss::Jumps(jumps) => {
                    let tokens = &entries.token[range];
                    let slopes = jumps.latent(latent as usize, norm, tokens, values, d_pre);
                    group.sums.thresholds[j] += slopes.threshold;
                    self.sums.sparsity += slopes.sparsity;
                    self.sums.pre_act += slopes.pre_act;
                    if norm > 0.0 {
                        group.decoder_share[j] = (slopes.norm / f64::from(norm)) as f32;
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
                group.decoder_share[j] = (f64::from(l1.scale) * active / f64::from(norm)) as f32;
            }
        }
    }
}

/// Some groups' entries, of those that go the sparse way: some tokens at a time, and of these latent by latent.
struct Walk<'a> {
    entries: &'a TileLists,
    first: usize,
    members: &'a [u32],
    dense: [bool; GROUPS],
    tokens_at_once: usize,
    n_tokens: usize,
    /// Where the tokens end that it is at.
    end: usize,
    /// The latent that is next, and where the next entry of each lies.
    place: usize,
    next: [usize; TILE],
}

/// Entries of one latent on some tokens.
struct LatentEntries {
    group: usize,
    /// The latent's place in the group.
    place: usize,
    latent: u32,
    entries: Range<usize>,
    /// Whether the latent had entries before these.
    is_begun: bool,
}

impl<'a> Walk<'a> {
    fn new(
        (entries, first, members): (&'a TileLists, usize, &'a [u32]),
        dense: [bool; GROUPS],
        tokens_at_once: usize,
        n_tokens: usize,
    ) -> Self {
        let mut next = [0; TILE];
        for (place, next) in next.iter_mut().enumerate().take(members.len()) {
            *next = entries.latent(first + place).start;
        }
        let end = tokens_at_once.min(n_tokens);
        Self { entries, first, members, dense, tokens_at_once, n_tokens, end, place: 0, next }
    }
}

impl Iterator for Walk<'_> {
    type Item = LatentEntries;

    // A closure that is handed on would be compiled without the instructions of its kernel; the body of a loop is not.
    #[inline(always)]
    fn next(&mut self) -> Option<LatentEntries> {
        loop {
            if self.place == self.members.len() {
                if self.end == self.n_tokens {
                    return None;
                }
                self.place = 0;
                self.end = (self.end + self.tokens_at_once).min(self.n_tokens);
            }
            let place = self.place;
            self.place += 1;
            let all = self.entries.latent(self.first + place);
            let begin = self.next[place];
            if self.dense[place / GROUP] || begin == all.end {
                continue;
            }
            let left = &self.entries.token[begin..all.end];
            let n_here = if self.end == self.n_tokens {
                left.len()
            } else {
                left.iter().take_while(|&&token| (token as usize) < self.end).count()
            };
            if n_here == 0 {
                continue;
            }
            self.next[place] = begin + n_here;
            return Some(LatentEntries {
                group: place / GROUP,
                place: place % GROUP,
                latent: self.members[place],
                entries: begin..begin + n_here,
                is_begun: begin > all.start,
            });
        }
    }
}
