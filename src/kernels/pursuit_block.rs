//! The pursuit of one block of tokens; see [`super::pursuit`].

use super::gram::{Gram, RowPanels, pack_groups};
use super::matching_pursuit::Pursuit;
use super::memory::Buffer;
use super::product::GROUP;
use super::rows::{add_scaled, products_with_rows, square_of_row};
use super::simd::{Kernel, LANES, Simd};

/// Tokens of one task.
pub(super) const TOKENS: usize = 48;
/// Values under one maximum.
pub(super) const CHUNK: usize = 16 * LANES;
/// Rows of products of decoder rows are asked for this many chunks before they are needed.
const AHEAD: usize = 3;
/// More latents than this that may be the largest, and all products are computed anew.
const MANY: usize = 256;

/// What a task needs; borrowed from [`Spares`].
#[derive(Default)]
pub(super) struct BlockSpace {
    /// Tokens in groups.
    groups: Buffer,
    /// Their products with all decoder rows, in whole chunks.
    products: Buffer,
    /// Maxima of one token's chunks, by lane.
    tops: Buffer,
    /// Latents that may have the largest product, and their products.
    candidates: Vec<u32>,
    candidate_products: Vec<f32>,
    /// For each token a bit for each latent that was chosen.
    chosen: Vec<u64>,
    /// Choices: token of the block, latent, value.
    pub(super) taken: Vec<(u32, u32, f32)>,
    /// For [`super::pursuit::Choices`], (F).
    pub(super) sums: Vec<f32>,
    active: Vec<Token>,
}

/// A token that is not done.
#[derive(Clone, Copy)]
struct Token {
    /// Its place in the block.
    nth: usize,
    n_chosen: usize,
    rounding: Rounding,
}

/// Bounds how far products that were brought up to date are from those computed anew.
///
/// With u = 2^-24 and d the largest norm of a decoder row: a product of D terms, added up in whatever order, is off by
/// at most D u |r| d; so are the first one, the last one, and, v times, each product of decoder rows. Each update rounds
/// the product and the residual once. Twice the sum leaves room for norms that are rounded themselves and for
/// machines that round products before they add.
#[derive(Clone, Copy, Default)]
struct Rounding {
    /// Sum of the norms behind chains; 0 while the products are those computed anew.
    chains: f32,
    /// Sum of the norms that were rounded once.
    rounded: f32,
}

/// Half the distance of 1 from the next larger number.
const UNIT: f32 = 1.0 / (1_u32 << 24) as f32;

impl Rounding {
    fn anew() -> Self {
        Self::default()
    }

    /// One update by `|v d_i| = moved`, of a residual of norm `from` to one of norm `to`.
    fn update(&mut self, from: f32, moved: f32, to: f32) {
        if self.chains == 0.0 {
            self.chains = from;
        }
        self.chains += moved;
        self.rounded += 2.0 * to;
    }

    /// The bound, for a residual of norm `size`.
    fn bound(&self, d_in: usize, largest_norm: f32, size: f32) -> f32 {
        if self.chains == 0.0 {
            return 0.0;
        }
        2.0 * UNIT * largest_norm * ((d_in + 2) as f32 * (self.chains + size) + self.rounded)
    }
}

/// What all tasks share.
pub(super) struct Pursue<'a> {
    pub(super) w_dec: &'a [f32],
    pub(super) rows: RowPanels<'a>,
    /// Norms of decoder rows, (F), and the largest of them.
    pub(super) norms: &'a [f32],
    pub(super) largest_norm: f32,
    pub(super) gram: Option<&'a Gram>,
    /// Distance of one token's products from the next one's.
    pub(super) columns: usize,
    pub(super) pursuit: &'a Pursuit,
    pub(super) iterations: usize,
}

/// One block of tokens.
pub(super) struct PursueBlock<'a> {
    pub(super) task: &'a Pursue<'a>,
    pub(super) residual: &'a mut [f32],
    pub(super) space: &'a mut BlockSpace,
}

impl Kernel for PursueBlock<'_> {
    #[inline(always)]
    fn run<S: Simd>(self) {
        let Self { task, residual, space } = self;
        let d_in = task.rows.d_in;
        let n_tokens = residual.len() / d_in;
        space.taken.clear();
        space.active.clear();
        space.products.resize((TOKENS + GROUP) * task.columns);
        space.tops.resize(task.columns / CHUNK * LANES);
        let words = task.rows.d_sae.div_ceil(64);
        space.chosen.clear();
        space.chosen.resize(n_tokens * words, 0);
        for (nth, token) in residual.chunks_exact(d_in).enumerate() {
            // SAFETY: this runs with the instructions of `S`; the row has D values.
            let size = unsafe { square_of_row::<S>(token.as_ptr(), d_in) }.sqrt();
            if size.is_finite() && task.largest_norm.is_finite() {
                space.active.push(Token { nth, n_chosen: 0, rounding: Rounding::anew() });
            } else {
                let broken = task.norms.iter().position(|norm| !norm.is_finite());
                space.taken.push((nth as u32, broken.unwrap_or(0) as u32, f32::NAN));
            }
        }
        if let Some(gram) = task.gram {
            task.products::<S>(residual, space, 0..space.active.len(), 0);
            for place in 0..space.active.len() {
                let mut token = space.active[place];
                let mut lowered = None;
                while let Some((latent, value)) =
                    task.choose::<S>(residual, space, place, &mut token, lowered)
                {
                    lowered = Some((gram.row(latent), value));
                }
            }
        } else {
            while !space.active.is_empty() {
                task.products::<S>(residual, space, 0..space.active.len(), 0);
                let mut kept = 0;
                for place in 0..space.active.len() {
                    let mut token = space.active[place];
                    if task.choose::<S>(residual, space, place, &mut token, None).is_some() {
                        space.active[kept] = token;
                        kept += 1;
                    }
                }
                space.active.truncate(kept);
            }
        }
    }
}

impl Pursue<'_> {
    /// Products of active tokens with all decoder rows, to rows of `space.products` from `to` on.
    #[inline(always)]
    fn products<S: Simd>(
        &self,
        residual: &[f32],
        space: &mut BlockSpace,
        places: std::ops::Range<usize>,
        to: usize,
    ) {
        let (d_in, d_sae, columns) = (self.rows.d_in, self.rows.d_sae, self.columns);
        let BlockSpace { groups, products, active, .. } = space;
        let tokens = active[places].iter().map(|token| &residual[token.nth * d_in..][..d_in]);
        let n_tokens = tokens.len();
        pack_groups(tokens, d_in, groups);
        let out = &mut products[to * columns..];
        assert!(out.len() >= n_tokens.next_multiple_of(GROUP) * columns, "a place for every group");
        // SAFETY: this runs with the instructions of `S`; rows hold whole panels, and there is one for each member
        // of a group.
        unsafe { self.rows.products::<S>(groups, out.as_mut_ptr(), columns) };
        for row in out.chunks_exact_mut(columns).take(n_tokens) {
            row[d_sae..].fill(f32::NEG_INFINITY);
        }
    }

    /// Brings the products of the active token at `place` up to date, if `lowered` says by what, and makes one
    /// choice. Returns it unless the token is done.
    #[inline(always)]
    fn choose<S: Simd>(
        &self,
        residual: &mut [f32],
        space: &mut BlockSpace,
        place: usize,
        token: &mut Token,
        lowered: Option<(&[f32], f32)>,
    ) -> Option<(u32, f32)> {
        let (d_in, columns) = (self.rows.d_in, self.columns);
        if token.n_chosen == self.iterations {
            return None;
        }
        let rest = token.nth * d_in;
        // SAFETY: this runs with the instructions of `S`; the row has D values.
        let size = unsafe { square_of_row::<S>(residual[rest..][..d_in].as_ptr(), d_in) }.sqrt();
        let bound = token.rounding.bound(d_in, self.largest_norm, size);
        let row = place * columns..(place + 1) * columns;
        let mut largest = lower::<S>(&mut space.products[row.clone()], &mut space.tops, lowered);
        collect::<S>(&space.products[row.clone()], &space.tops, largest - 2.0 * bound, &mut space.candidates);
        if bound > 0.0 && space.candidates.len() > MANY {
            self.products::<S>(residual, space, place..place + 1, TOKENS);
            space.products.copy_within(TOKENS * columns..(TOKENS + 1) * columns, row.start);
            token.rounding = Rounding::anew();
            largest = lower::<S>(&mut space.products[row.clone()], &mut space.tops, None);
            collect::<S>(&space.products[row], &space.tops, largest, &mut space.candidates);
        }
        let rest = &mut residual[rest..][..d_in];
        let latent = if token.rounding.chains == 0.0 || space.candidates.len() == 1 {
            *space.candidates.first()?
        } else {
            self.largest_of::<S>(rest, size, &mut space.candidates, &mut space.candidate_products)?
        };
        if let Some(gram) = self.gram {
            for line in gram.row(latent)[..columns.min(AHEAD * CHUNK)].chunks(LANES) {
                // SAFETY: this runs with the instructions of `S`.
                unsafe { S::prefetch(line.as_ptr()) };
            }
        }
        let direction = &self.w_dec[latent as usize * d_in..][..d_in];
        let mut value = [0.0];
        // SAFETY: this runs with the instructions of `S`; both rows have D values.
        unsafe { products_with_rows::<S>(rest.as_ptr(), direction.as_ptr(), d_in, &[0], &mut value) };
        let [value] = value;
        if value <= 0.0 {
            return None;
        }
        space.taken.push((token.nth as u32, latent, value));
        token.n_chosen += 1;
        let word = token.nth * self.rows.d_sae.div_ceil(64) + latent as usize / 64;
        let bit = 1 << (latent % 64);
        let again = space.chosen[word] & bit != 0;
        space.chosen[word] |= bit;
        // SAFETY: this runs with the instructions of `S`; both rows have D values.
        let left = unsafe {
            add_scaled::<S>(rest.as_mut_ptr(), -value, direction.as_ptr(), d_in);
            square_of_row::<S>(rest.as_ptr(), d_in).sqrt()
        };
        let threshold = self.pursuit.residual_threshold;
        let near = threshold > 0.0 && f64::from(left) < threshold;
        if near || (again && self.pursuit.stop_on_duplicate_support) || !left.is_finite() {
            return None;
        }
        if self.gram.is_some() {
            token.rounding.update(size, value * self.norms[latent as usize], left);
        }
        Some((latent, value))
    }

    /// The latent with the largest product, computed as the tile does it; of equal ones the lowest. `latents` rise, and
    /// those that cannot be it are removed. Products added up sixteen terms at a time, which is many times faster, tell
    /// almost always.
    #[inline(always)]
    fn largest_of<S: Simd>(
        &self,
        rest: &[f32],
        size: f32,
        latents: &mut Vec<u32>,
        products: &mut Vec<f32>,
    ) -> Option<u32> {
        let d_in = rest.len();
        products.clear();
        products.resize(latents.len(), 0.0);
        // SAFETY: this runs with the instructions of `S`; latents are below F.
        unsafe {
            products_with_rows::<S>(rest.as_ptr(), self.w_dec.as_ptr(), d_in, latents, products);
        }
        // Both ways to add up are off by as much as [`Rounding`] says of one.
        let bound = 4.0 * UNIT * self.largest_norm * size * (d_in + 4) as f32;
        let limit = products.iter().copied().fold(f32::NEG_INFINITY, f32::max) - bound;
        let mut place = 0;
        latents.retain(|_| {
            place += 1;
            products[place - 1] >= limit
        });
        if latents.len() > 1 { self.largest_anew::<S>(rest, latents) } else { latents.first().copied() }
    }

    /// The same from all of them.
    #[inline(always)]
    fn largest_anew<S: Simd>(&self, rest: &[f32], latents: &[u32]) -> Option<u32> {
        let d_in = rest.len();
        let mut best: Option<(f32, u32)> = None;
        for latents in latents.chunks(LANES) {
            let mut products = [0.0; LANES];
            // SAFETY: this runs with the instructions of `S`.
            unsafe {
                let mut sums = S::splat(0.0);
                for (k, &r) in rest.iter().enumerate() {
                    let mut weights = [0.0; LANES];
                    for (weight, &latent) in weights.iter_mut().zip(latents) {
                        *weight = self.w_dec[latent as usize * d_in + k];
                    }
                    // As the tile does it.
                    sums = S::fma(S::load(weights.as_ptr()), S::splat(r), sums);
                }
                S::store(products.as_mut_ptr(), sums);
            }
            for (&latent, product) in latents.iter().zip(products) {
                if best.is_none_or(|(value, _)| product > value) {
                    best = Some((product, latent));
                }
            }
        }
        best.map(|(_, latent)| latent)
    }
}

/// `products -= value * by`, if there is something to lower them by. Returns the largest, and by lane those of every
/// chunk in `tops`. Lengths are whole chunks.
#[inline(always)]
fn lower<S: Simd>(products: &mut [f32], tops: &mut [f32], by: Option<(&[f32], f32)>) -> f32 {
    let n_chunks = products.len() / CHUNK;
    assert!(products.len() == n_chunks * CHUNK && tops.len() >= n_chunks * LANES, "whole chunks");
    assert!(by.is_none_or(|(by, _)| by.len() >= products.len()), "as many as there are products");
    let mut lanes = [0.0; LANES];
    // SAFETY: this runs with the instructions of `S`; all offsets lie inside the arrays, by the assertions.
    unsafe {
        let mut all = S::splat(f32::NEG_INFINITY);
        for chunk in 0..n_chunks {
            let mut top = S::splat(f32::NEG_INFINITY);
            let to = products.as_mut_ptr().add(chunk * CHUNK);
            if let Some((by, value)) = by {
                let by = by.as_ptr().add(chunk * CHUNK);
                let factor = S::splat(-value);
                for line in (0..CHUNK).step_by(LANES) {
                    // Rows lie in memory and cross pages, where the hardware stops looking ahead.
                    S::prefetch(by.wrapping_add(AHEAD * CHUNK + line));
                }
                for at in (0..CHUNK).step_by(LANES) {
                    let lowered = S::fma(factor, S::load(by.add(at)), S::load(to.add(at)));
                    S::store(to.add(at), lowered);
                    top = S::max(top, lowered);
                }
            } else {
                for at in (0..CHUNK).step_by(LANES) {
                    top = S::max(top, S::load(to.add(at)));
                }
            }
            S::store(tops.as_mut_ptr().add(chunk * LANES), top);
            all = S::max(all, top);
        }
        S::store(lanes.as_mut_ptr(), all);
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// The places of all products that reach `limit`, in rising order.
#[inline(always)]
fn collect<S: Simd>(products: &[f32], tops: &[f32], limit: f32, places: &mut Vec<u32>) {
    places.clear();
    // What lies beyond the last latent is -inf.
    let limit = limit.max(f32::MIN);
    for (chunk, values) in products.chunks_exact(CHUNK).enumerate() {
        // SAFETY: this runs with the instructions of `S`; both arrays hold whole vectors.
        unsafe {
            if S::not_below(S::load(tops[chunk * LANES..][..LANES].as_ptr()), S::splat(limit)) == 0 {
                continue;
            }
            for at in (0..CHUNK).step_by(LANES) {
                let mut reached = S::not_below(S::load(values[at..][..LANES].as_ptr()), S::splat(limit));
                while reached != 0 {
                    places.push((chunk * CHUNK + at) as u32 + reached.trailing_zeros());
                    reached &= reached - 1;
                }
            }
        }
    }
}
